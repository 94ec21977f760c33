"""The table's own behaviour: forcing, refusing, falling back with a reason, backward where forward ran."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from fasttx.ops import availability, registry
from fasttx.ops.backends import BackendError, backend, forced_backend
from fasttx.ops.dropout.state import new_rng_state
from fasttx.ops.registry import Direction, Impl, Op


def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def _direction(arguments: str) -> Direction:
    return Direction(
        schema=f"({arguments}, str backend) -> Tensor",
        check=lambda x: None,
        fake=torch.empty_like,
        torch=_double,
        reference=lambda x: x.double() * 2,
        keys=("x",),
        cost=lambda x: (x.numel(), 8.0 * x.numel()),
    )


def triple_into(out: torch.Tensor, x: torch.Tensor) -> None:
    """A launcher that can be told from the composition: it triples."""
    out.copy_(x * 3)


@pytest.fixture(scope="module")
def op() -> Op:
    where = f"{__name__}:triple_into"
    made = Op(
        "table_test",
        _direction("Tensor x"),
        _direction("Tensor x"),
        (Impl("triton", where, where, lambda x: "needs an even length" if x.numel() % 2 else None),),
    )
    del registry.OPS["table_test"]  # not a row that other tests should see
    return made


def test_force_is_process_wide_and_restored() -> None:
    before = forced_backend()
    with backend("torch"):
        assert forced_backend() == "torch"
        with backend("auto"):
            assert forced_backend() == "auto"
        assert forced_backend() == "torch"
    assert forced_backend() == before
    with pytest.raises(RuntimeError, match="stop"), backend("torch"):
        raise RuntimeError("stop")
    assert forced_backend() == before


def test_unknown_backend_is_refused() -> None:
    message = "^backend: got 'cudnn'; allowed is 'auto', 'cuda', 'triton', 'cpu', 'torch'"
    with pytest.raises(BackendError, match=message), backend("cudnn"):
        pass


def test_unknown_backend_in_the_environment_stops_the_first_call_not_the_import() -> None:
    code = """
import torch, fasttx
from fasttx.nn import functional as F
x, t = torch.randn(2, 5), torch.tensor([1, 2])
calls = {
    "softmax": lambda: F.softmax(x, -1),
    "cross_entropy": lambda: F.cross_entropy(x, t),
    "bce": lambda: F.binary_cross_entropy_with_logits(x, x),
    "attention": lambda: F.scaled_dot_product_attention(*x[None, None].expand(3, 1, 1, 2, 5)),
    "backend": lambda: fasttx.backend("torch").__enter__(),
}
for call, run in calls.items():
    try:
        run()
    except fasttx.BackendError as e:
        print(call, e)
"""
    env = {**os.environ, "FASTTX_BACKEND": "cudnn"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    message = "FASTTX_BACKEND: got 'cudnn'; allowed is 'auto', 'cuda', 'triton', 'cpu', 'torch'"
    calls = ("softmax", "cross_entropy", "bce", "attention", "backend")
    assert ran.stdout.splitlines() == [f"{call} {message}" for call in calls]


def test_environment_forces() -> None:
    env = {**os.environ, "FASTTX_BACKEND": "torch"}
    code = "from fasttx.ops.backends import forced_backend; print(forced_backend())"
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "torch"


def test_forced_backend_runs_or_raises(op: Op, device: torch.device) -> None:
    call = torch.ops.fasttx.table_test_fwd
    even, odd = torch.ones(4, device=device), torch.ones(3, device=device)
    before = registry.LAUNCHES["table_test_fwd", "triton"]
    assert torch.equal(call(even, "triton"), even * 3)
    assert registry.LAUNCHES["table_test_fwd", "triton"] == before + 1
    with pytest.raises(BackendError, match="table_test: backend 'triton' cannot run this call: needs an even length"):
        call(odd, "triton")
    with pytest.raises(BackendError, match="backend 'cuda' cannot run this call: not implemented"):
        call(even, "cuda")
    assert torch.equal(call(even, "torch"), even * 2)


def test_auto_on_cpu_never_interprets(op: Op) -> None:
    assert torch.equal(torch.ops.fasttx.table_test_fwd(torch.ones(4), "auto"), torch.full((4,), 2.0))


def test_auto_on_a_gpu_warns_once_and_says_why(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        """Stands for a tensor on a GPU: only its device and its length are asked for."""

        device = torch.device("cuda", 0)

        def __init__(self, n: int) -> None:
            self.n = n

        def numel(self) -> int:
            return self.n

    monkeypatch.setattr(registry, "cannot_run_on", lambda *a: None)
    assert op.choice("auto", OnGpu(4)).backend == "triton"  # type: ignore[union-attr,arg-type]
    assert op.choice("auto", OnGpu(3)) is None  # type: ignore[arg-type]
    with pytest.warns(
        UserWarning, match=r"table_test runs as PyTorch's own operators on cuda:0 \(triton: needs an even"
    ):
        op.warn_once(OnGpu(3))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op.warn_once(OnGpu(3))  # type: ignore[arg-type]


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU as the registry sees it: it is asked for its compute capability and nothing else."""
    monkeypatch.setattr(availability, "_arch", lambda index: 80)
    monkeypatch.setattr(torch.version, "hip", None)
    for name in ("CC", "CPATH", "C_INCLUDE_PATH", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    availability.lacks_to_launch_triton.cache_clear()
    yield torch.device("cuda", 0)
    availability.lacks_to_launch_triton.cache_clear()


def _program(folder: pathlib.Path, name: str) -> str:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    "on_path, cc, runs",
    [
        ((), None, False),
        (("cc",), None, False),  # Triton does not look for this name
        (("gcc",), None, True),
        (("clang",), None, True),
        (("gcc",), "no-such-compiler", False),  # Triton obeys CC, whatever PATH holds
        (("icx",), "icx", True),
        (("gcc",), "", False),
    ],
    ids=str,
)
def test_triton_needs_a_c_compiler_on_a_gpu(
    on_path: tuple[str, ...], cc: str | None, runs: bool, ampere: torch.device, tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in on_path:
        _program(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    if cc is not None:
        monkeypatch.setenv("CC", cc)
    reason = availability.cannot_run_on("triton", ampere, 80)
    if runs:
        assert reason is None
    else:
        assert reason is not None and reason.startswith("needs a C compiler")
        assert cc is None or f"CC={cc!r}" in reason
    monkeypatch.setattr(availability.cuda, "_compiled", lambda: (SimpleNamespace(ARCHS="80,90a"), ""))
    assert availability.cannot_run_on("cuda", ampere, 80) is None  # compiled long ago


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_needs_pythons_headers_on_a_gpu(
    ampere: torch.device, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    _program(tmp_path, "gcc")
    monkeypatch.setattr(availability.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert "needs Python's headers" in availability.cannot_run_on("triton", ampere, 80)  # type: ignore[operator]
    monkeypatch.setenv("CPATH", "/elsewhere")  # where the compiler looks besides
    availability.lacks_to_launch_triton.cache_clear()
    assert availability.cannot_run_on("triton", ampere, 80) is None


def test_without_a_c_compiler_auto_warns_once_and_a_forced_call_refuses(
    op: Op, ampere: torch.device, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = SimpleNamespace(device=ampere, numel=lambda: 4)
    monkeypatch.setenv("PATH", str(tmp_path))
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    assert op.choice("auto", x) is None  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"PyTorch's own operators on cuda:0 \(triton: needs a C compiler"):
        op.warn_once(x)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op.warn_once(x)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="'triton' cannot run this call: needs a C compiler"):
        op.choice("triton", x)  # type: ignore[arg-type]


def test_the_interpreter_needs_no_c_compiler(
    ampere: torch.device, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert availability.cannot_run_on("triton", torch.device("cpu"), 80) is None
    assert availability.cannot_run_on("triton", ampere, 80) is None


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("why", [None, "needs compute capability 80, the device has 61"], ids=["kernel", "none"])
def test_has_kernel_answers_by_device_and_what_else_speaks_against_a_call(
    op: Op, traced: bool, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(registry, "cannot_run_on", lambda name, *a: asked.append(name) or why)
    monkeypatch.setattr(registry, "_kernels", {})
    monkeypatch.setattr(registry, "_warned", set())
    monkeypatch.setitem(registry.OPS, op.name, op)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: traced)
    gpu = torch.device("cuda", 7)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            assert op.has_kernel(gpu, torch.float16) == (why is None)
        assert not op.has_kernel(gpu, torch.float16, "head_dim 264 is larger than 256")
    assert not op.has_kernel(torch.device("cpu"), torch.float16), "auto launches nothing on a CPU"
    assert asked == ["triton"] * (3 if traced else 2), "an answer is kept"
    assert len(told) == 1


def test_reasons_name_every_backend(op: Op, device: torch.device) -> None:
    found = op.reasons(torch.ones(3, device=device))
    absent = dict.fromkeys(("cuda", "cpu"), "not implemented")
    assert found == absent | {"triton": "needs an even length", "torch": None}


def test_empty_input_launches_nothing(op: Op, device: torch.device) -> None:
    before = registry.LAUNCHES["table_test_fwd", "triton"]
    assert torch.ops.fasttx.table_test_fwd(torch.ones(0, device=device), "triton").shape == (0,)
    assert registry.LAUNCHES["table_test_fwd", "triton"] == before


def test_schema_must_end_in_backend() -> None:
    direction = Direction("(Tensor x) -> Tensor", *[lambda x: x] * 4, keys=("x",), cost=lambda x: (0, 0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'x' as the last argument of the schema; allowed is 'str backend'"):
        Op("table_test_wrong", direction, direction)
    del registry.OPS["table_test_wrong"]


def test_rng_state_follows_the_seed(device: torch.device) -> None:
    torch.manual_seed(7)
    a, b = new_rng_state(device), new_rng_state(device)
    torch.manual_seed(7)
    assert torch.equal(a, new_rng_state(device)) and not torch.equal(a, b)
    assert a.shape == (2,) and a.dtype == torch.int64 and a.device.type == device.type


def test_composition_records_no_graph_of_its_own(op: Op) -> None:
    x = torch.ones(4, requires_grad=True)
    recorded = torch.ops.fasttx.table_test_fwd(x, "torch").grad_fn
    assert "Mul" not in type(recorded).__name__


def test_a_composition_is_alone_whoever_calls_it() -> None:
    """Also a direct caller of ``Direction.torch``, as doctor and these tests are: no graph, and no autocast."""
    product = _direction("Tensor x")
    product = Direction(**{**vars(product), "torch": lambda x: x @ x})
    x = torch.ones(4, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = product.torch(x)
    assert out.dtype == torch.float32 and not out.requires_grad
