"""Refuses to build from a tree whose links to the kernels were lost, and compiles fasttx._C where nvcc is found.

buildsystem/cuda_build.py says which nvcc, and which variables choose; all else stands in pyproject.toml.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "buildsystem"))

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


class BuildCuda(build_ext):
    """Compiles the one extension by nvcc."""

    def build_extension(self, ext: Extension) -> None:
        names = cuda_build.archs(editable=bool(self.inplace or self.editable_mode))
        cuda_build.build(Path(self.get_ext_fullpath(ext.name)), ROOT / "build" / "cuda", names)


builds_nothing = {"--version", "egg_info", "sdist", "dist_info"} & set(sys.argv)
compiled = not builds_nothing and cuda_build.why_not() is None
setup(ext_modules=[Extension("fasttx._C", [])] if compiled else [], cmdclass={"build_ext": BuildCuda})
