"""Refuses to build from a tree whose links to the kernels were lost, and compiles what this machine has compilers for.

fasttx._C where nvcc is found (buildsystem/cuda_build.py says which, and which variables choose), fasttx._C_cpu where a
C++ compiler is (buildsystem/cpu_build.py). All else stands in pyproject.toml.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "buildsystem"))

import announce  # noqa: E402
import cpu_build  # noqa: E402
import cuda_build  # noqa: E402


def check_link(name: str) -> None:
    """`fasttx/<name>` must be a folder of Python files: the link in a checkout, a real folder in an sdist.

    Git on Windows (without core.symlinks) and several archivers turn the link into a text file or drop it.  setuptools
    would then build a wheel without kernels, and succeed.
    """
    path = ROOT / "fasttx" / name
    if path.is_dir() and any(path.glob("*.py")):
        return
    if path.is_file():
        found = f"is a text file ({path.read_text(errors='replace')[:40].strip()!r})"
    elif path.is_dir():
        found = "is a folder without Python files"
    elif path.is_symlink():
        found = "is a link to nothing"
    else:
        found = "is missing"
    raise SystemExit(
        f"fasttx cannot be built: fasttx/{name} {found}; it has to be a symbolic link to ../{name}. This checkout or "
        f"archive lost its symbolic links. Clone with `git clone -c core.symlinks=true`, or copy the folder {name}/ to "
        f"fasttx/{name}/, and install again."
    )


for link in ("kernels", "bench"):
    check_link(link)


class Build(build_ext):
    """Compiles each extension by its own file of buildsystem/."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        if ext.name == "fasttx._C":
            names = cuda_build.archs(editable=bool(self.inplace or self.editable_mode))
            cuda_build.build(target, ROOT / "build" / "cuda", names)
            return
        try:
            cpu_build.build(target, ROOT / "build" / "cpu")
        except RuntimeError as problem:
            if not ext.optional:
                raise
            announce.say(f"no int8 kernels for the CPU, as they did not compile here: {problem}")
            raise CompileError(str(problem)) from problem  # setuptools goes on without an optional one


def extensions() -> list[Extension]:
    """What is compiled here; nothing for a command that builds nothing."""
    if {"--version", "egg_info", "sdist", "dist_info"} & set(sys.argv):
        return []
    found = []
    if cuda_build.why_not() is None:
        found.append(Extension("fasttx._C", []))
    if cpu_build.why_not() is None:
        found.append(Extension("fasttx._C_cpu", [], optional=cpu_build.wish() == "auto"))
    return found


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
