"""The build backend: that of setuptools, which also asks for a CUDA compiler where fasttx._C is to have one."""

from __future__ import annotations

import cuda_build
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

COMPILER = "cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]==13.0.*"
"""Pinned as a whole: of newer parts of the compiler the older ones cannot read the output."""


def _compiling() -> list[str]:
    wish = cuda_build.wish()
    found = cuda_build.find_toolkit() is not None
    if wish == "0" or (wish == "auto" and not found):
        return []
    return ["pybind11>=2.13"] if found else ["pybind11>=2.13", COMPILER]


def get_requires_for_build_wheel(config_settings=None):
    """What pip installs into the isolated environment of a build."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiling()]


def get_requires_for_build_editable(config_settings=None):
    """As for a wheel."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compiling()]
