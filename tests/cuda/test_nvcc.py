"""fasttx._C as nvcc makes it: no spill, 16-byte accesses, a module loadable without a driver; what a build asks for."""

from __future__ import annotations

import subprocess
import sys
import sysconfig

import backend
import cuda_build
import pytest
from cuda import machine_code

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
needs_nvcc = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS)), pytest.mark.timeout(900)]

# instantiations of each file: dtypes x (lengths of a row) x (forward and backward)
COUNT = {
    "attention_fwd_sm80": 2 * 6,  # of two dtypes, and head_dim to 32, 64, 96, 128, 192, 256
    "attention_fwd_sm90": 2 * 3 * 4,  # plain, with dropout, with masks; head_dim to 32, 64, 96, 128
    "attention_bwd_sm80": 2 * (1 + 7),  # delta; head_dim to 32, 64, 128 with dropout and without, to 256
    "attention_bwd_dq_sm80": 2 * 7,
    "attention_bwd_dbias_sm80": 2 * 4,
    "softmax": 3 * 7 * (2 * 2),  # resident rows of five lengths, held and streamed; with dropout and without
    "binary_cross_entropy": 3 * 2,
    "kl_div": 3 * 2 * 2,  # probabilities and logarithms
    "cross_entropy": 3
    * 2
    * (4 + 3),  # two forward and two backward kernels, rows of three lengths; forward in clusters
    "column_sum": 1,
    "loss_sum": 1,
    "quantize_per_token": 3 * 4,
    "bias_gelu_quantize": 3 * 4,
    "add_layer_norm_quantize": 4 * 4,  # of three dtypes, and of several
    "embedding_layer_norm": 4 * 3 * 2,
    "bias_gelu": 3 + 3 * 2,  # forward; backward with dout of that dtype, and of another
    "dropout_add_layer_norm": 4 * 4 * 2,  # of three dtypes, and of several
    "linear_cross_entropy": 1,
    "int8_linear_sm80": 5 + 1,  # tiles, and rows that are not aligned
}
# bytes of shared memory: 128 a reduction, sums of the rows of a block, 32 a value that the blocks of a cluster exchange
SHARED = {
    "attention_fwd_sm80": 0,
    "attention_fwd_sm90": 0,
    "attention_bwd_sm80": 0,
    "attention_bwd_dq_sm80": 0,
    "attention_bwd_dbias_sm80": 0,
    "softmax": 3 * 128 + 3 * 8 * 4,
    "column_sum": 8 * 32 * 4,
    "loss_sum": 2 * 128,
    "binary_cross_entropy": 128,
    "kl_div": 128,
    "cross_entropy": 4 * 128 + 4 * 8 * 4,
    "quantize_per_token": 128,
    "bias_gelu_quantize": 128,
    "add_layer_norm_quantize": 4 * 128,
    "embedding_layer_norm": 3 * 128 + 4 * 512,
    "bias_gelu": 8 * 128 * 4,
    "dropout_add_layer_norm": 2 * 128 + 4 * 1024,
    "linear_cross_entropy": 2 * 128,
    "int8_linear_sm80": 0,  # all of it is dynamic
}
# 16-byte accesses of some kernels: neighbouring floats for neighbouring threads; 8 int8 side by side; two floats a row
VECTORS: dict[str, set[str]] = {
    "attention_fwd_sm90": {"STG"},  # TMA loads
    "attention_bwd_": {"LDG"},  # gradients leave the accumulators by pairs
    "column_sum_kernel": set(),
    "loss_sum_kernel": set(),
    "31linear_cross_entropy_fwd_kernel": set(),
    "quantize_per_token_kernel": {"LDG"},
    "bias_gelu_quantize_kernel": {"LDG"},
    "6fasttx24cross_entropy_fwd_kernel": {"LDG"},
}


KNOWN_COMPLAINTS = {
    ("softmax", "100"): "FormE1",
    ("softmax", "120"): "FormE1",
}
"""(file, arch) -> part of the kernels' names.

docs/kernels/softmax.md: streamed rows have a stack where ptxas unrolls both passes.
"""


class TestMachineCode:
    pytestmark = needs_nvcc

    @pytest.mark.parametrize("arch", ["80", "90a"])
    @pytest.mark.parametrize("source", sorted(cuda_build.CSRC.glob("*/*.cu")), ids=lambda p: p.stem)
    def test_no_spill_and_vector_accesses(self, source, arch):
        if not cuda_build.archs_of(source, [arch]):
            pytest.skip(f"{source.name} is not compiled to machine code for {arch}")
        found = machine_code.kernels(source, arch)
        assert len(found) == COUNT[source.stem]
        for kernel in found:
            assert kernel.stack_bytes == 0, f"{kernel.name} spills"
            assert kernel.shared_bytes <= SHARED[source.stem] + 1024  # sm_90 reserves 1 KiB
            vectors = {i[:3] for i in kernel.instructions if i.startswith(("LDG", "STG")) and ".128" in i}
            special = [want for name, want in VECTORS.items() if name in kernel.name]
            assert vectors == (special[0] if special else {"LDG", "STG"}), f"{kernel.name} has 16-byte {vectors}"

    @pytest.mark.parametrize(
        "arch", [name for name in cuda_build.DEFAULT_ARCHS.split(",") if not name.startswith("ptx")]
    )
    @pytest.mark.parametrize("source", sorted(cuda_build.CSRC.glob("*/*.cu")), ids=lambda p: p.stem)
    def test_ptxas_complains_of_nothing(self, source, arch):
        if not cuda_build.archs_of(source, [arch]):
            pytest.skip(f"{source.name} is not compiled to machine code for {arch}")
        known = KNOWN_COMPLAINTS.get((source.stem, arch), "no kernel")
        assert [line for line in machine_code.complaints(source, arch) if known not in line] == []

    @pytest.mark.parametrize("arch", ["100", "120"])
    def test_clusters_on_later_archs(self, arch):
        """Of the default archs the newest ones, for the file whose code differs most between archs."""
        found = machine_code.kernels(cuda_build.CSRC / "cross_entropy" / "cross_entropy.cu", arch)
        assert len(found) == COUNT["cross_entropy"] and not any(k.stack_bytes for k in found)
        shared = [k for k in found if "6fasttx24cross_entropy_fwd_kernel" in k.name and "Lb1EEEv" in k.name]
        assert len(shared) == 6 and all("UCGABAR_WAIT" in k.instructions for k in shared)

    @pytest.mark.parametrize("arch", ["80", "90a"])
    def test_only_losses_that_blocks_share_have_instructions_of_clusters(self, arch):
        counted = 0
        for kernel in machine_code.kernels(cuda_build.CSRC / "cross_entropy" / "cross_entropy.cu", arch):
            shared = "6fasttx24cross_entropy_fwd_kernel" in kernel.name and "Lb1EEEv" in kernel.name
            found = {i for i in kernel.instructions if "CGABAR" in i or i.startswith(("ST.E", "BPT"))}
            expected = {"UCGABAR_ARV", "UCGABAR_WAIT", "ST.E"} if shared and arch == "90a" else set()
            assert found == expected, kernel.name
            counted += shared
        assert counted == 6

    @pytest.mark.parametrize("arch", ["80", "90a"])
    def test_only_rows_that_blocks_share_have_instructions_of_clusters(self, arch):
        for kernel in machine_code.kernels(cuda_build.CSRC / "softmax" / "softmax.cu", arch):
            held = "FormE2" in kernel.name
            found = {i for i in kernel.instructions if "CGABAR" in i or i.startswith(("ST.E", "BPT"))}
            expected = {"UCGABAR_ARV", "UCGABAR_WAIT", "ST.E"} if held and arch == "90a" else set()
            assert found == expected, kernel.name
            # held: two blocks of 512 threads on a multiprocessor; one else, which has room for 128 registers
            dropout_streamed = "FormE1" in kernel.name and "dropout_bwd" in kernel.name
            assert kernel.registers <= (64 if held else 96 if dropout_streamed else 80)
            vectors = sorted(i[:3] for i in kernel.instructions if i.startswith(("LDS", "STS")) and ".128" in i)
            assert not held or {*vectors} == {"LDS", "STS"}, f"{kernel.name} keeps what it reads by {vectors}"

    def test_the_module_loads_without_a_driver_and_launches_fail_with_the_reason(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FASTTX_CUDA_ARCHS", "80,90a")
        target = tmp_path / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        cuda_build.build(target, machine_code.FOLDER)
        code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_C", {str(target)!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
assert module.ARCHS == "80,90a"
import torch
if torch.cuda.is_available(): sys.exit()
try:
    module.softmax_fwd(0, out=(16, 0), x=(16, 0), mask=dict(data=None, dtype=4, sizes=(1, 1, 1), strides=(0,) * 5),
        rng_state=None, dtype=0, n_rows=3, n_cols=7, stride_xm=7, scale=1.0, threshold=0, keep_scale=1.0, log=False)
except RuntimeError as error:
    assert str(error).startswith("softmax_fwd of 3 x 7 on device 0, sm_"), error
    assert "cudaError" in str(error), error
else:
    sys.exit("a launch without a driver succeeded")
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
        symbols = subprocess.run(["nm", "-D", "--defined-only", target], capture_output=True, text=True, check=True)
        names = [line.split()[-1] for line in symbols.stdout.splitlines()]
        assert "PyInit__C" in names and not [n for n in names if "fasttx" in n or "pybind" in n or n.startswith("cuda")]
        needed = subprocess.run(["readelf", "-d", target], capture_output=True, text=True, check=True).stdout
        assert "libcuda" not in needed and "libtorch" not in needed
        before = {p: p.stat().st_mtime_ns for p in machine_code.FOLDER.iterdir()}
        cuda_build.build(target, machine_code.FOLDER)
        assert before == {p: p.stat().st_mtime_ns for p in machine_code.FOLDER.iterdir()}, "a second build compiled"


@pytest.mark.parametrize(
    "wish, gpus, toolkit, asked",
    [
        ("auto", ["90a"], None, []),
        ("auto", ["90a"], "here", ["pybind11>=2.13"]),
        ("auto", [], "here", []),
        ("0", ["90a"], "here", []),
        ("1", [], None, ["pybind11>=2.13", backend.COMPILER]),
        ("1", [], "here", ["pybind11>=2.13"]),
    ],
)
def test_what_a_build_downloads(wish, gpus, toolkit, asked, monkeypatch):
    monkeypatch.setenv("FASTTX_CUDA", wish)
    monkeypatch.delenv("FASTTX_CUDA_ARCHS", raising=False)
    monkeypatch.setattr(cuda_build, "devices", lambda: gpus)
    monkeypatch.setattr(cuda_build, "find_toolkit", lambda: toolkit)
    assert backend._compiling() == asked


def test_toolkits_are_looked_for_in_order(tmp_path, monkeypatch):
    for name in ("home", "path"):
        for file in ("bin/nvcc", "lib/libcudart_static.a"):
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).touch(mode=0o755)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(cuda_build, "USUAL_HOME", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert cuda_build.find_toolkit().nvcc == tmp_path / "home" / "bin" / "nvcc"
    (tmp_path / "home" / "lib" / "libcudart_static.a").unlink()  # half a toolkit is none
    monkeypatch.setattr(cuda_build.importlib.util, "find_spec", lambda name: None)
    assert cuda_build.find_toolkit().nvcc == tmp_path / "path" / "bin" / "nvcc"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda_build.find_toolkit() is None and "no nvcc" in cuda_build.lacks()


def test_archs(monkeypatch):
    monkeypatch.setenv("FASTTX_CUDA_ARCHS", "80, 90a,ptx120")
    assert cuda_build.gencode(cuda_build.archs()) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    for wrong in ("70", "sm_80", ""):
        monkeypatch.setenv("FASTTX_CUDA_ARCHS", wrong)
        with pytest.raises(SystemExit, match="FASTTX_CUDA_ARCHS"):
            cuda_build.archs()


def test_a_wish_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("FASTTX_CUDA", "yes")
    with pytest.raises(SystemExit, match="FASTTX_CUDA='yes': allowed are"):
        cuda_build.wish()
