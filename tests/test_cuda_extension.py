"""fasttx._C as the package sees it: whether it is here, which devices its code runs on, and how that is said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fasttx.ops import availability
from fasttx.ops.cuda import launch as cuda
from fasttx.ops.softmax import op as softmax

ARCHS = "80,86,90a,120,ptx120"


@pytest.mark.parametrize(
    "arch, runs",
    [
        (75, False),
        (80, True),
        (86, True),
        (87, True),
        (89, True),
        (90, True),
        (100, False),
        (120, True),
        (121, True),
        (130, True),
    ],
)
def test_which_devices_the_machine_code_runs_on(arch: int, runs: bool) -> None:
    assert cuda.covers(ARCHS, arch) is runs


def test_a_minor_version_below_has_no_code() -> None:
    assert not cuda.covers("86", 80) and cuda.covers("86", 89)
    assert not cuda.covers("90a", 91) and cuda.covers("ptx90", 100)
    assert not cuda.covers("", 80)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(availability, "_arch", lambda index: 90)
    monkeypatch.setattr(torch.version, "hip", None)
    return torch.device("cuda", 0)


@pytest.mark.parametrize(
    "compiled, reason",
    [
        ((SimpleNamespace(ARCHS="80,90a"), ""), None),
        (
            (SimpleNamespace(ARCHS="80"), ""),
            "fasttx._C is built for 80, the device has 90 (install again with FASTTX_CUDA_ARCHS=80,90)",
        ),
        ((None, "fasttx._C is not built"), "fasttx._C is not built"),
    ],
    ids=["built", "for another arch", "absent"],
)
def test_reason_on_a_gpu(gpu, compiled, reason, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_compiled", lambda: compiled)
    assert availability.cannot_run_on("cuda", gpu, 80) == reason
    assert availability.cannot_run_on("cuda", gpu, 100) == "needs compute capability 100, the device has 90"


@pytest.mark.parametrize(
    "archs, runtime, driver, runs",
    [
        ("80,90a", 13000, 13000, True),
        ("80,90a", 13020, 13000, True),
        ("80,90a", 13000, 12090, False),
        ("80,ptx90", 13020, 13000, False),
        ("80,ptx90", 13020, 13020, True),
        ("80,90a", 13000, 0, True),
        ("80,90a", 0, 12000, True),
    ],
)
def test_an_older_driver_is_a_reason(gpu, archs, runtime, driver, runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of machine code in an older major version, of PTX in an older minor one; what is not known is none."""
    monkeypatch.setattr(cuda, "_compiled", lambda: (SimpleNamespace(ARCHS=archs, RUNTIME=runtime), ""))
    monkeypatch.setattr(cuda, "driver_version", lambda: driver)
    reason = availability.cannot_run_on("cuda", gpu, 80)
    assert (reason is None) is runs
    if reason is not None:
        version = "13.0" if runtime == 13000 else "13.2"
        assert reason.startswith(f"fasttx._C is built with CUDA {version}, and the driver is for ")


def test_a_machine_without_a_driver_has_no_version() -> None:
    if not torch.cuda.is_available():
        assert cuda.driver_version() == 0


def test_a_gpu_without_triton_takes_the_compiled_kernels(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_triton_present", lambda: False)
    monkeypatch.setattr(cuda, "_compiled", lambda: (SimpleNamespace(ARCHS="90a"), ""))
    x = SimpleNamespace(device=gpu, shape=(2, 3), numel=lambda: 6)
    assert softmax.SOFTMAX.choice("auto", x).backend == "cuda"  # type: ignore[arg-type,union-attr]


def test_absent_and_broken_modules_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda._compiled.cache_clear()
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    assert cuda._compiled()[1].startswith("fasttx._C is not built")
    assert cuda.built_for() is None
    cuda._compiled.cache_clear()

    def broken(name: str) -> None:
        raise ImportError("undefined symbol: cudaLaunchKernel")

    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(cuda.importlib, "import_module", broken)
    assert cuda._compiled() == (None, "fasttx._C cannot be loaded: undefined symbol: cudaLaunchKernel")
    cuda._compiled.cache_clear()


def test_without_a_stand_in_cpu_tensors_have_no_compiled_kernel() -> None:
    before = cuda._stand_in
    cuda.set_stand_in(None)
    try:
        assert softmax.SOFTMAX.reasons(torch.ones(2, 3))["cuda"] == "needs an NVIDIA GPU, the tensors are on 'cpu'"
    finally:
        cuda.set_stand_in(*before or (None,))
