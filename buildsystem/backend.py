"""The build backend: that of setuptools, which also asks for a CUDA compiler where fasttx._C is to have one."""

from __future__ import annotations

import announce
import cpu_build
import cuda_build
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

COMPILER = "cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]==13.0.*"
"""Pinned as a whole: of newer parts of the compiler the older ones cannot read the output."""


def _compiling() -> list[str]:
    found = cuda_build.find_toolkit() is not None
    if not cuda_build.has_use() or (cuda_build.wish() == "auto" and not found):
        return []
    return ["pybind11>=2.13"] if found else ["pybind11>=2.13", COMPILER]


def get_requires_for_build_wheel(config_settings=None):
    """What pip installs into the isolated environment of a build."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiling()]


def get_requires_for_build_editable(config_settings=None):
    """As for a wheel."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compiling()]


def _say_what_is_not_compiled() -> None:
    announce.behind_pip()
    for build in (cuda_build, cpu_build):
        reason = build.why_not()
        if reason is not None and build.wish() != "0":
            announce.say(reason)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """That of setuptools; the person who waits is told what is compiled."""
    _say_what_is_not_compiled()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """As for a wheel."""
    _say_what_is_not_compiled()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
