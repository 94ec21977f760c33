"""cute_layouts.json is what NVIDIA's CuTe says, and csrc/arch encodes what it says.

The other tests use the committed file. CuTe's headers come with `pip install nvidia-cutlass==4.2.0.0`, or lie where
CUTLASS_INCLUDE says; where they are, the file is printed anew and compared.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import host_build
import instruction_cases
import pytest
import torch

LAYOUTS = instruction_cases.LAYOUTS


def cute_headers() -> list[Path]:
    """The include folders that cute_layouts.cpp needs; empty where one is missing."""
    cutlass = [Path(os.environ["CUTLASS_INCLUDE"])] if os.environ.get("CUTLASS_INCLUDE") else []
    package = importlib.util.find_spec("cutlass_library")  # of nvidia-cutlass
    if package is not None and package.origin is not None:
        cutlass.append(Path(package.origin).parent / "source" / "include")
    homes = [Path(os.environ[n]) / "include" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    toolkits = [
        f for f in (*homes, Path("/usr/local/cuda/include")) if (f / "cccl" / "cuda" / "std" / "utility").is_file()
    ]
    if not cutlass or not toolkits:
        return []
    return [cutlass[0], toolkits[0] / "cccl", toolkits[0]]


@pytest.mark.slow
@pytest.mark.skipif(not cute_headers(), reason="no headers of CuTe (nvidia-cutlass) or of a CUDA toolkit")
def test_the_committed_layouts_are_what_cute_prints(tmp_path):
    program, printed = tmp_path / "cute_layouts", tmp_path / "printed.json"
    folders = [f"-I{folder}" for folder in cute_headers()]
    source = host_build.HERE / "cute_layouts.cpp"
    command = [str(host_build.compiler()), "-std=c++17", "-w", *folders, str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    subprocess.run([program, printed], check=True)
    version = json.loads(printed.read_text())["CuTe"]
    if version != LAYOUTS["CuTe"]:
        pytest.skip(f"the committed file is of {LAYOUTS['CuTe']}, here is {version}")
    assert printed.read_text() == (host_build.HERE / "cute_layouts.json").read_text()


def test_every_fragment_is_a_bijection():
    """So that a matrix goes into registers whole, whatever the file says."""
    for name, images in LAYOUTS.items():
        if isinstance(images, list):
            offsets = instruction_cases.positions(name).flatten()
            step = offsets[offsets > 0].min()
            assert torch.equal(offsets.sort().values, torch.arange(offsets.numel()) * step), name


@pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.endswith(" descriptor")])
def test_descriptors_have_cutes_bits(name):
    unused = 0x3FFF << 16 if "MN-major" in name else 0  # the leading dimension: of the second tile, and there is one
    library = ctypes.CDLL(str(host_build.build_library("plain", [host_build.HERE / "instructions_sm90.cu"], False)))
    library.descriptor_of.restype = ctypes.c_uint64
    for address in (0, 0x400, 0x13420, 0x38C00):
        expected = LAYOUTS[name] | address >> 4
        assert library.descriptor_of(address) & ~unused == expected & ~unused
