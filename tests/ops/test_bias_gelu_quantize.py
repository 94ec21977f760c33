"""bias_gelu_quantize: on each backend the bits of bias_gelu and of quantize_per_token after it.

`cpu` has no bias_gelu of its own: there it is the GELU at the end of int8_linear.
"""

from __future__ import annotations

import math

import pytest
import torch
from ops.guard_bytes import GUARD, surrounded
from torch import Tensor

from fasttx.ops.backends import BackendError
from fasttx.ops.bias_gelu_quantize.op import BIAS_GELU_QUANTIZE
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.dispatch import resolve
from fasttx.ops.quantize_per_token.op import MAX_COLS
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

ops = torch.ops.fasttx
FP32, FP16, BF16 = DTYPES
BACKENDS = ["torch", "triton", "cuda", "cpu"]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of inf * 0


def runnable(backend: str, x: Tensor) -> None:
    reason = BIAS_GELU_QUANTIZE.reasons(x)[backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def gelu_alone(x: Tensor, bias: Tensor | None, tanh: bool, backend: str) -> Tensor:
    """GELU of x + bias in the dtype of x, as `backend` has it."""
    if backend != "cpu":
        return ops.bias_gelu_fwd(x, bias, None, None, 0.0, tanh, backend)
    n_cols = x.shape[-1]
    z = (x.float() if bias is None else x.float() + bias.float()).reshape(-1, n_cols)
    nothing = [torch.zeros(n, 1, dtype=torch.int8) for n in (1, n_cols)]
    scales, activation = (torch.ones(1), torch.ones(n_cols)), "gelu_tanh" if tanh else "gelu"
    rows = [ops.int8_linear_fwd(*nothing, *scales, row, None, activation, x.dtype, "cpu") for row in z]
    return torch.cat(rows).view(x.shape) if rows else x.new_empty(x.shape)


def hold(
    backend: str, x: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, tanh: bool = False
) -> tuple[Tensor, Tensor]:
    """The outputs, held to the two ops one after the other."""
    runnable(backend, x)
    LAUNCHES.clear()
    x_q, x_scale = ops.bias_gelu_quantize_fwd(x, bias, scale, tanh, backend)
    assert LAUNCHES == {("bias_gelu_quantize_fwd", backend if x.numel() else "torch"): 1}
    activated = gelu_alone(x, bias, tanh, backend)
    wanted_q, wanted_scale = ops.quantize_per_token_fwd(activated, scale, backend)
    assert torch.equal(x_q, wanted_q) and torch.equal(x_scale.nan_to_num(nan=77.0), wanted_scale.nan_to_num(nan=77.0))
    assert x_q.is_contiguous() and x_scale.shape == x.shape[:-1] and x_scale.is_contiguous()
    return x_q, x_scale


# several rows a program, one; a warp a row with 16 and 32 columns a thread, 128 threads, 512; whole runs of 8 and not
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1, 7, 8, 31, 33, 384, 512, 513, 1024, 1032, 3072, 4097])
def test_the_bits_of_the_two_ops(device, n_cols: int, dtype: torch.dtype, backend: str) -> None:
    n_rows = max(3, 3000 // n_cols)
    x = (torch.randn(n_rows, n_cols, device=device) * torch.logspace(-3, 2, n_rows, device=device)[:, None]).to(dtype)
    bias = torch.randn(n_cols, device=device)
    given = torch.tensor(0.01, device=device)
    for tanh in (False, True):
        hold(backend, x, bias.to(dtype), None, tanh)
        hold(backend, x, bias, given, tanh)  # a float32 bias
        hold(backend, x, None, None, tanh)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_the_longest_row(device, backend: str) -> None:
    hold(backend, torch.randn(2, MAX_COLS, device=device).to(BF16), torch.randn(MAX_COLS, device=device))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tanh", [False, True])
def test_accuracy(device, tanh: bool, backend: str) -> None:
    x, bias = torch.randn(40, 700, device=device).to(BF16), torch.randn(700, device=device).to(BF16)
    found, half = hold(backend, x, bias, None, tanh), BIAS_GELU_QUANTIZE.fwd
    for actual, same, ref in zip(found, half.torch(x, bias, None, tanh), half.reference(x, bias, None, tanh)):
        assert_as_accurate(actual, same, ref)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [None, 0.03])
@pytest.mark.parametrize("tanh", [False, True])
def test_rows_without_numbers_are_nan_and_touch_no_other(device, tanh: bool, scale, backend: str) -> None:
    given = None if scale is None else torch.tensor(scale, device=device)
    x, bias = torch.randn(7, 50, device=device), torch.randn(50, device=device)
    alone = hold(backend, x, bias, given, tanh)
    x[1, 3], x[3, 49], x[5, 0] = math.nan, math.inf, math.nan
    x_q, x_scale = hold(backend, x, bias, given, tanh)
    assert x_scale.isnan().tolist() == [False, True, False, True, False, True, False]
    assert not x_q[[1, 3, 5]].any()
    for found, before in zip((x_q, x_scale), alone):
        assert torch.equal(found[[0, 2, 4, 6]], before[[0, 2, 4, 6]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_saturation_and_scales_without_an_inverse(device, backend: str) -> None:
    x_q, x_scale = hold(backend, torch.zeros(2, 64, device=device))
    assert not x_q.any() and bool((x_scale > 0.0).all())
    x = torch.tensor([[100.0, -100.0, 1.0, 0.0]], device=device)
    x_q, x_scale = hold(backend, x, None, torch.tensor(0.01, device=device))
    assert x_q.tolist() == [[127, 0, 84, 0]] and x_scale.tolist() == pytest.approx([0.01])
    x_q, x_scale = hold(backend, x, None, torch.tensor(1e-40, device=device))
    assert not x_q.any() and bool(x_scale.isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(device, backend: str) -> None:
    base, row = torch.randn(3, 70, 40, device=device), torch.randn(140, device=device)[::2]
    for x in (base.transpose(1, 2), base[:, 3:50, 1:], base[..., ::2], base[0, 0], base[:, :, :1], base[:0]):
        hold(backend, x, row[: x.shape[-1]])


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("n_cols", [101, 104])
def test_nothing_outside_of_the_tensors_is_read_or_written(device, n_cols: int, backend: str) -> None:
    runnable(backend, torch.empty(1, device=device))
    n_rows = 4096 // 128 + 3  # ragged in both directions
    x, bias = (surrounded(shape, math.nan, device)[0].normal_() for shape in [(n_rows, n_cols), (n_cols,)])
    x_scale, scale_room = surrounded((n_rows,), 7.0, device)
    q_room = torch.full((n_rows * n_cols + 2 * GUARD,), 99, dtype=torch.int8, device=device)
    x_q = q_room[GUARD:-GUARD].view(n_rows, n_cols)
    impl = next(i for i in BIAS_GELU_QUANTIZE.impls if i.backend == backend)
    resolve(impl.fwd)(x_q, x_scale, x, bias, None, True)
    wanted_q, wanted_scale = hold(backend, x, bias, None, True)
    assert torch.equal(x_q, wanted_q) and torch.equal(x_scale, wanted_scale)
    for room, fill in ((scale_room, 7.0), (q_room, 99)):
        assert bool((room[:GUARD] == fill).all()) and bool((room[-GUARD:] == fill).all())


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_rows_too_long_for_the_kernel(device, backend: str) -> None:
    x = torch.randn(2, MAX_COLS + 1, device=device)
    with pytest.raises(BackendError, match=f"rows of at most {MAX_COLS} columns"):
        ops.bias_gelu_quantize_fwd(x, None, None, False, backend)
    hold("torch", x)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.ones(2, 0)}, "x: got .*; allowed is .* at least one column"),
        ({"bias": torch.ones(4)}, r"bias: got torch.float32 \(4,\); allowed is .* \(5,\)"),
        ({"bias": torch.ones(5).half()}, "bias: got .*; allowed is torch.float32 or float32"),
        ({"scale": torch.ones(1)}, r"scale: got torch.float32 \(1,\); allowed is float32 \(\)"),
        ({"scale": torch.tensor(math.inf)}, "scale: got inf; allowed is a positive, finite number"),
    ],
    ids=str,
)
def test_refusals(change, message: str) -> None:
    arguments = {"x": torch.ones(2, 5), "bias": None, "scale": None, "tanh": False} | change
    with pytest.raises(ValueError, match=message):
        BIAS_GELU_QUANTIZE.fwd.check(**arguments)
