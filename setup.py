"""Refuses to build from a tree whose links to the kernels were lost; everything else stands in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


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
setup()
