"""The int8 kernels for a CPU: the same bits in every form, on any number of threads and whatever shares the batch."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpu_module
import pytest
import torch
from torch import Tensor

from fasttx.nn import Int8Linear
from fasttx.nn import functional as F
from fasttx.ops import OPS
from fasttx.ops.backends import BackendError
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.cpu import launch
from fasttx.ops.int8_linear.op import INT8_LINEAR
from fasttx.ops.quantize_per_token.op import QUANTIZE_PER_TOKEN
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

ops = torch.ops.fasttx
ROOT = Path(__file__).resolve().parents[2]
MODULE = cpu_module.load()
FORMS: list[str] = [] if MODULE is None else MODULE.forms()
pytestmark = pytest.mark.skipif(MODULE is None, reason="no C++ compiler is here")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with_form(request.param)
    yield request.param
    with_form(FORMS[0])


def with_form(name: str) -> None:
    assert MODULE is not None
    MODULE.use_form(name)
    assert MODULE.form() == name


def same(found: Any, wanted: Any) -> bool:
    """Equal bits; every NaN is one."""
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=77.0), b.nan_to_num(nan=77.0))
        for a, b in zip(found, wanted, strict=True)
    )


def integers(*shape: int) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def every_op(n_rows: int, n_cols: int, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Calls of each op, without the backend; rows of many magnitudes, one of them with a NaN."""
    spread = torch.logspace(-3, 3, n_rows)[:, None]
    x, residual, bias = torch.randn(n_rows, n_cols) * spread, torch.randn(n_rows, n_cols), torch.randn(n_cols)
    x[n_rows // 2, n_cols // 2] = torch.nan
    x, residual, bias = x.to(dtype), residual.to(dtype), bias.to(dtype)
    n_out = 130
    linear = integers(n_rows, n_cols), integers(n_out, n_cols), torch.rand(n_rows) / 99, torch.rand(n_out) / 99
    more = torch.randn(n_out).to(dtype), torch.randn(n_rows, n_out).to(dtype)
    return {
        "quantize_per_token": (x, None),
        "add_layer_norm_quantize": (x, residual, bias, bias, None, 1e-5, dtype),
        "bias_gelu_quantize": (x, bias, None, False),
        "int8_linear": (*linear, *more, "gelu", dtype),
    }


def run(op: str, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    found = getattr(ops, f"{op}_fwd")(*arguments, "cpu")
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1, 5, 16, 37, 64, 68, 200, 384, 1030])
def test_every_form_has_the_same_bits(n_cols: int, dtype: torch.dtype) -> None:
    for op, arguments in every_op(37, n_cols, dtype).items():
        found = []
        for name in FORMS:
            with_form(name)
            found.append(run(op, arguments))
        with_form(FORMS[0])
        assert all(same(each, found[0]) for each in found[1:]), op


@pytest.mark.parametrize("n_rows, n_in, n_out", [(1, 64, 3), (5, 3, 66), (7, 260, 64), (13, 129, 70), (30, 132, 257)])
def test_sums_are_exact(form: str, n_rows: int, n_in: int, n_out: int) -> None:
    """Packed and not, whole tiles and parts of them; the extremes leave int32 between, and come back."""
    x_q, w_q = integers(n_rows, n_in), integers(n_out, n_in)
    x_q[0], w_q[0] = -128, -128
    ones = torch.ones(n_rows), torch.ones(n_out)
    found = ops.int8_linear_fwd(x_q, w_q, *ones, None, None, "none", torch.float32, "cpu")
    assert torch.equal(found.long(), x_q.long() @ w_q.long().t())


def test_sums_are_exact_where_int32_ends(form: str) -> None:
    x_q, w_q = torch.full((30, 131_000), -128, dtype=torch.int8), torch.full((2, 131_000), -128, dtype=torch.int8)
    w_q[1] = 127
    found = ops.int8_linear_fwd(x_q, w_q, torch.ones(30), torch.ones(2), None, None, "none", torch.float32, "cpu")
    assert torch.equal(found, (x_q[:1].long() @ w_q.long().t()).float().expand(30, 2))


def test_every_number_of_half_precision_is_read_and_written(form: str) -> None:
    """By the residual of a product that is 0, which is added and stored."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(256, 256)
    generator = torch.Generator().manual_seed(5)
    wide = torch.randint(-(2**31), 2**31, (256, 256), generator=generator).to(torch.int32).view(torch.float32)
    near = torch.randn(256, 256) * torch.logspace(-9, 5, 256)[:, None]  # subnormal halves, and their overflow
    zeros, ones = torch.zeros(256, 1, dtype=torch.int8), torch.ones(256)
    for dtype in (torch.float16, torch.bfloat16):
        for residual, out_dtype in ((patterns.view(dtype), torch.float32), (wide, dtype), (near, dtype)):
            found = ops.int8_linear_fwd(zeros, zeros, ones, ones, None, residual, "none", out_dtype, "cpu")
            torch.testing.assert_close(found, residual.to(out_dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("n_cols", [1, 24, 37, 400])
def test_accuracy(form: str, n_cols: int, tanh: bool, dtype: torch.dtype) -> None:
    calls = every_op(40, n_cols, dtype)
    calls["bias_gelu_quantize"] = (*calls["bias_gelu_quantize"][:3], tanh)
    calls["int8_linear"] = (*calls["int8_linear"][:6], "gelu_tanh" if tanh else "gelu", dtype)
    for op, arguments in calls.items():
        direction = OPS[op].fwd
        wanted = (direction.torch(*arguments), direction.reference(*arguments))
        same_dtype, references = (each if isinstance(each, tuple) else (each,) for each in wanted)
        for found, same, reference in zip(run(op, arguments), same_dtype, references, strict=True):
            assert_as_accurate(found, same, reference, op)


def test_integers_are_those_of_the_definition(form: str) -> None:
    """Also of rows of zeros, of the smallest numbers and of the largest, with a scale of their own and a given one."""
    x = torch.randn(300, 45) * torch.logspace(-40, 38, 300)[:, None]
    x[7], x[9], x[11, 3], x[13, 44] = 0.0, 1e-45, torch.inf, torch.nan
    x[15, :9] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -127.0])  # ties
    for given in (None, torch.tensor(0.03), torch.tensor(1e-40)):
        want_q, want_scale = QUANTIZE_PER_TOKEN.fwd.reference(x, given)
        x_q, x_scale = ops.quantize_per_token_fwd(x, given, "cpu")
        assert torch.equal(x_q.double(), want_q) and same([x_scale], [want_scale.float()])


def test_equal_numbers_are_zeros_after_the_norm(form: str) -> None:
    """Their mean is one of them, however it is rounded."""
    x = torch.rand(64, 1).expand(64, 37).contiguous() * 100.0
    out, x_q, _ = ops.add_layer_norm_quantize_fwd(x, None, None, None, None, 1e-12, torch.float32, "cpu")
    assert not out.any() and not x_q.any()


@pytest.mark.parametrize("op", every_op(3, 8, torch.float32))
def test_a_row_does_not_depend_on_what_shares_the_batch(op: str) -> None:
    """Alone, in batches of any size, in another place: few rows take another way through the product than many."""
    arguments = every_op(301, 384, torch.float32)[op]
    whole = run(op, arguments)
    rows = [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.shape[:1] == (301,)]
    for chosen in (slice(3, 4), slice(0, 8), slice(10, 26), slice(9, 42), slice(150, 301)):
        some = [a[chosen] if i in rows else a for i, a in enumerate(arguments)]
        assert same(run(op, tuple(some)), [each[chosen] for each in whole])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_number_of_threads_has_the_same_bits(dtype: torch.dtype) -> None:
    calls = every_op(1001, 384, dtype)
    wanted = {op: run(op, arguments) for op, arguments in calls.items()}
    before = torch.get_num_threads()
    try:
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            for op, arguments in calls.items():
                assert same(run(op, arguments), wanted[op]), (op, threads)
    finally:
        torch.set_num_threads(before)


def test_several_threads_may_call_at_once() -> None:
    calls = every_op(200, 384, torch.float32)
    wanted = {op: run(op, arguments) for op, arguments in calls.items()}
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            wrong.extend(op for op, arguments in calls.items() if not same(run(op, arguments), wanted[op]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


IN_A_PROCESS = """
import os, sys
import cpu_module, torch
from fasttx.ops.cpu import launch
launch.set_stand_in(cpu_module.load())
"""


def in_a_process(code: str) -> str:
    """What a program prints, with the kernels of this tree; it fails if that fails or crashes."""
    paths = [str(ROOT / part) for part in (".", "tests/support", "buildsystem")]
    start = f"import sys; sys.path[:0] = {paths!r}\n{IN_A_PROCESS}"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


AFTER_A_FORK = """
torch.set_num_threads(3)
module = launch.kernels()
x = torch.randn(3000, 384)
def made():
    return torch.ops.fasttx.quantize_per_token_fwd(x, None, "cpu")[0]
wanted = made()  # PyTorch's threads are there now, and none of them in the child
print(module.has_threads(), flush=True)
child = os.fork()
if child == 0:
    right = made().numpy().tobytes() == wanted.numpy().tobytes()  # an operator of PyTorch's would wait for ever
    print(module.has_threads(), right, flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


def test_a_child_has_threads_of_its_own() -> None:
    """PyTorch's do not live on in it, and to wait for them would be to wait for ever."""
    assert in_a_process(AFTER_A_FORK).split("\n")[:3] == ["True", "False True", "0"]


BESIDE_FORBIDDEN_MEMORY = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept = []

def at_the_end(t):
    "The same numbers in memory behind which lies a page that nobody may touch; and another one before its first page."
    t = t.contiguous()
    size, page = t.numel() * t.element_size(), mmap.PAGESIZE
    pages = -(-size // page)
    room = mmap.mmap(-1, (pages + 2) * page)
    kept.append(room)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    made = torch.frombuffer(room, dtype=torch.uint8)[(pages + 1) * page - size : (pages + 1) * page]
    made = made.view(t.dtype).view(t.shape) if size else t
    made.copy_(t)
    for forbidden in (start, start + (pages + 1) * page):
        assert libc.mprotect(forbidden, page, 0) == 0
    return made

import test_cpu_kernels as tests
from fasttx.ops import OPS
from fasttx.ops.dispatch import resolve
for form in tests.FORMS:
    launch.kernels().use_form(form)
    for n_rows, n_cols in ((3, 1), (1, 13), (8, 68), (5, 100), (9, 384)):
        for dtype in tests.DTYPES:
            for name, arguments in tests.every_op(n_rows, n_cols, dtype).items():
                row = next(i for i in OPS[name].impls if i.backend == "cpu")
                given = [at_the_end(a) if isinstance(a, torch.Tensor) else a for a in arguments]
                made = OPS[name].fwd.fake(*arguments)
                outputs = [at_the_end(o) for o in (made if isinstance(made, tuple) else (made,))]
                resolve(row.fwd)(*outputs, *given)
                assert tests.same(outputs, tests.run(name, arguments)), (form, name)
                kept.clear()
print("touched nothing else")
"""


def test_nothing_outside_of_the_tensors_is_read_or_written() -> None:
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'tests' / 'ops')!r})\n"
    assert in_a_process(start + BESIDE_FORBIDDEN_MEMORY) == "touched nothing else\n"


def test_weights_may_be_replaced_in_place() -> None:
    """Nothing of a weight is kept from one call to the next, whichever way it is written."""
    x, layer = torch.randn(5, 64), Int8Linear.from_float(torch.nn.Linear(64, 70))
    other = Int8Linear.from_float(torch.nn.Linear(64, 70))
    layer(x)
    with torch.no_grad():
        layer.weight.data.copy_(other.weight)
        layer.weight_scale.copy_(other.weight_scale)
        layer.bias.copy_(other.bias)
    assert torch.equal(layer(x), other(x))


def test_what_auto_takes_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 8)
    LAUNCHES.clear()
    F.int8_linear(x, *F.quantize_per_channel(torch.randn(6, 8)))
    assert set(LAUNCHES) == {("quantize_per_token_fwd", "cpu"), ("int8_linear_fwd", "cpu")}
    launch.set_stand_in(None)
    try:
        monkeypatch.setattr(launch, "_compiled", lambda: (None, "fasttx._C_cpu is not built"))
        assert QUANTIZE_PER_TOKEN.runs("auto", x) == "torch"
        assert QUANTIZE_PER_TOKEN.why("auto", x) == "cpu: fasttx._C_cpu is not built"
        with pytest.raises(BackendError, match="backend 'cpu' cannot run this call: fasttx._C_cpu is not built"):
            ops.quantize_per_token_fwd(x, None, "cpu")
    finally:
        launch.set_stand_in(MODULE)
    assert INT8_LINEAR.reasons(x.to("meta"), x.to("meta"))["cpu"] == "runs on a CPU, the tensors are on 'meta'"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_and_graphs(mode: Any) -> None:
    """One graph, without a break, and the bits of the plain call."""
    layer = Int8Linear.from_float(torch.nn.Linear(32, 48))
    x = torch.randn(3, 5, 32)
    plain = layer(x)
    with mode():
        assert torch.equal(layer(x), plain)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        LAUNCHES.clear()
        assert torch.equal(compiled(x), plain)
    assert LAUNCHES["int8_linear_fwd", "cpu"] == 1


def test_a_launcher_wants_all_its_arguments() -> None:
    with pytest.raises(TypeError, match="int8_linear_fwd: another number of arguments is wanted"):
        launch.kernels().int8_linear_fwd(1, 2, 3)
    with pytest.raises(TypeError):
        launch.kernels().quantize_per_token_fwd(*["1"] * 9)
    with pytest.raises(ValueError, match="form: got 'sse9'; allowed is one of"):
        launch.kernels().use_form("sse9")
