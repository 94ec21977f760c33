"""add_layer_norm_quantize: on each backend the bits of dropout_add_layer_norm and of quantize_per_token after it.

`cpu` has no dropout_add_layer_norm of its own: there out keeps the accuracy rule.
"""

from __future__ import annotations

import math

import pytest
import torch
from ops.guard_bytes import GUARD, surrounded
from torch import Tensor

from fasttx.ops.add_layer_norm_quantize.op import ADD_LAYER_NORM_QUANTIZE
from fasttx.ops.backends import BackendError
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.dispatch import resolve
from fasttx.ops.dropout_add_layer_norm.op import MAX_COLS
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

ops = torch.ops.fasttx
FP32, FP16, BF16 = DTYPES
BACKENDS = ["torch", "triton", "cuda", "cpu"]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of inf - inf


def runnable(backend: str, x: Tensor) -> None:
    reason = ADD_LAYER_NORM_QUANTIZE.reasons(x)[backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def same_bits(found: Tensor, wanted: Tensor) -> bool:
    """Equal, NaN included."""
    return found.dtype == wanted.dtype and torch.equal(found.nan_to_num(nan=77.0), wanted.nan_to_num(nan=77.0))


def hold(
    backend: str,
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs, held to the two ops one after the other."""
    runnable(backend, x)
    out_dtype = out_dtype or x.dtype
    LAUNCHES.clear()
    out, x_q, x_scale = ops.add_layer_norm_quantize_fwd(x, residual, weight, bias, scale, eps, out_dtype, backend)
    assert LAUNCHES == {("add_layer_norm_quantize_fwd", backend if x.numel() else "torch"): 1}
    forward = ADD_LAYER_NORM_QUANTIZE.fwd
    partner = "torch" if backend == "cpu" else backend
    wanted, _, _ = ops.dropout_add_layer_norm_fwd(x, residual, weight, bias, None, None, 0.0, eps, out_dtype, partner)
    # docs/kernels/add_layer_norm_quantize.md, Limits
    if backend == "cpu":
        assert_as_accurate(out, wanted, forward.reference(x, residual, weight, bias, scale, eps, out_dtype)[0])
    elif x.is_cuda and torch.cuda.get_device_capability(x.device) >= (10, 0):
        torch.testing.assert_close(out, wanted, equal_nan=True, rtol=2 * torch.finfo(out.dtype).eps, atol=1e-6)
    else:
        assert same_bits(out, wanted)
    wanted_q, wanted_scale = ops.quantize_per_token_fwd(out, scale, backend)
    assert torch.equal(x_q, wanted_q) and same_bits(x_scale, wanted_scale)
    assert out.is_contiguous() and x_q.is_contiguous() and x_scale.shape == x.shape[:-1]
    return out, x_q, x_scale


def tensors(n_rows: int, n_cols: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x, residual, weight, bias; rows of many magnitudes and means."""
    spread = torch.logspace(-2, 2, n_rows, device=device)[:, None]
    x = (torch.randn(n_rows, n_cols, device=device) + 3.0) * spread
    row = torch.randn(2, n_cols, device=device)
    return [t.to(dtype) for t in (x, torch.randn(n_rows, n_cols, device=device), row[0] + 1.0, row[1])]


# several rows a program, one; a warp a row with 16 and 32 columns a thread, 128 threads, 512; whole runs of 8 and not
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1, 7, 8, 16, 37, 384, 512, 513, 1024, 1032, 2049])
def test_the_bits_of_the_two_ops(device, n_cols: int, dtype: torch.dtype, backend: str) -> None:
    x, residual, weight, bias = tensors(max(3, 2000 // n_cols), n_cols, dtype, device)
    hold(backend, x, residual, weight, bias)
    hold(backend, x, None, None, None, torch.tensor(0.02, device=device), 1e-12)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("n_cols", [4096, 4104, MAX_COLS])
def test_long_rows(device, n_cols: int, backend: str) -> None:
    hold(backend, *tensors(2, n_cols, BF16, device))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "x, residual, affine, out",
    [
        (BF16, FP32, FP32, FP32),
        (FP32, BF16, BF16, FP32),
        (FP16, None, FP32, FP32),
        (BF16, BF16, FP32, BF16),
        (FP32, FP32, BF16, FP16),
    ],
    ids=str,
)
def test_each_tensor_has_a_dtype_of_its_own(device, x, residual, affine, out, backend: str) -> None:
    given, added, weight, bias = tensors(5, 200, FP32, device)
    hold(
        backend,
        given.to(x),
        None if residual is None else added.to(residual),
        weight.to(affine),
        bias.to(FP16),
        None,
        1e-5,
        out,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_accuracy(device, backend: str) -> None:
    """What the integers stand for is out, off by half a scale, and out keeps the accuracy rule."""
    x, residual, weight, bias = tensors(40, 384, BF16, device)
    out, x_q, x_scale = hold(backend, x, residual, weight, bias)
    half, arguments = ADD_LAYER_NORM_QUANTIZE.fwd, (x, residual, weight, bias, None, 1e-5, BF16)
    for found, same, ref in zip((out, x_q, x_scale), half.torch(*arguments), half.reference(*arguments)):
        assert_as_accurate(found, same, ref)
    error = (x_q.double() * x_scale.double()[:, None] - out.double()).abs()
    assert bool((error <= 0.5001 * x_scale.double()[:, None]).all())
    assert bool((x_q.abs().amax(-1) == 127).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [None, 0.03])
def test_rows_without_numbers_are_nan_and_touch_no_other(device, backend: str, scale: float | None) -> None:
    given = None if scale is None else torch.tensor(scale, device=device)
    x, residual, weight, bias = tensors(7, 50, FP32, device)
    alone = hold(backend, x, residual, weight, bias, given)
    x[1, 3], residual[3, 49], x[5, 0] = math.nan, math.inf, -math.inf
    out, x_q, x_scale = hold(backend, x, residual, weight, bias, given)
    assert x_scale.isnan().tolist() == [False, True, False, True, False, True, False]
    assert not x_q[[1, 3, 5]].any() and out[[1, 3, 5]].isnan().all()
    for found, before in zip((out, x_q, x_scale), alone):
        assert torch.equal(found[[0, 2, 4, 6]], before[[0, 2, 4, 6]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_row_is_zeros(device, backend: str) -> None:
    x = torch.full((2, 64), 4.0, device=device)
    out, x_q, x_scale = hold(backend, x)
    assert not out.any() and not x_q.any() and bool((x_scale > 0.0).all())
    # rounding of the mean is all that is left of such rows, and more beyond their end than in them
    hold(backend, torch.rand(64, 1, device=device).expand(64, 37) * 100.0, eps=1e-12)
    _, x_q, x_scale = hold(backend, x, None, None, None, torch.tensor(1e-40, device=device))  # its inverse is infinite
    assert not x_q.any() and bool(x_scale.isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(device, backend: str) -> None:
    base = torch.randn(4, 6, 50, device=device)
    weight = torch.randn(82, device=device)[::2]
    for x in (base[:, :, 3:44], base[..., 1:42], base.transpose(0, 1)[..., :41].transpose(0, 1)):
        hold(backend, x, x.flip(0), weight, weight)
        hold(backend, x.contiguous(), x)
    hold(backend, base.transpose(1, 2), None)
    hold(backend, base[:, 0], base[:, 1])  # the first tokens alone
    hold(backend, base[0, 0], base[1, 1])
    hold(backend, base[:1, :1].expand(4, 6, 50), base)
    hold(backend, base[:0], base[:0])


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("n_cols", [13, 768, 1025])
def test_nothing_outside_of_the_tensors_is_read_or_written(device, n_cols: int, backend: str) -> None:
    runnable(backend, torch.empty(1, device=device))
    x, residual, weight, bias = (
        surrounded(shape, math.nan, device)[0].normal_() for shape in [(3, n_cols)] * 2 + [(n_cols,)] * 2
    )
    (out, out_room), (x_scale, scale_room) = (surrounded(shape, 7.0, device) for shape in [(3, n_cols), (3,)])
    q_room = torch.full((3 * n_cols + 2 * GUARD,), 99, dtype=torch.int8, device=device)
    x_q = q_room[GUARD:-GUARD].view(3, n_cols)
    impl = next(i for i in ADD_LAYER_NORM_QUANTIZE.impls if i.backend == backend)
    resolve(impl.fwd)(out, x_q, x_scale, x, residual, weight, bias, None, 1e-5, FP32)
    assert bool(out.isfinite().all()), "an element was not written, or one outside was read"
    wanted_q, wanted_scale = ops.quantize_per_token_fwd(out, None, backend)
    assert torch.equal(x_q, wanted_q) and torch.equal(x_scale, wanted_scale)
    for room, fill in ((out_room, 7.0), (scale_room, 7.0), (q_room, 99)):
        assert bool((room[:GUARD] == fill).all()) and bool((room[-GUARD:] == fill).all())


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_rows_too_long_for_the_kernel(device, backend: str) -> None:
    x = torch.randn(2, MAX_COLS + 1, device=device)
    with pytest.raises(BackendError, match=f"rows of at most {MAX_COLS} columns"):
        ops.add_layer_norm_quantize_fwd(x, None, None, None, None, 1e-5, FP32, backend)
    hold("torch", x)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.ones(2, 0)}, "x: got .*; allowed is .* at least one column"),
        ({"residual": torch.ones(5)}, "residual: got .*; allowed is"),
        ({"weight": torch.ones(4)}, "weight: got .*; allowed is"),
        ({"eps": -1.0}, "eps: got .*; allowed is a finite number, not negative"),
        ({"out_dtype": torch.float64}, "out_dtype: got .*; allowed is"),
        ({"scale": torch.ones(1)}, r"scale: got torch.float32 \(1,\); allowed is float32 \(\)"),
        ({"scale": torch.zeros(())}, "scale: got 0.0; allowed is a positive, finite number"),
        ({"scale": torch.ones((), device="meta")}, "scale: got a tensor on meta; allowed is cpu, where x is"),
    ],
    ids=str,
)
def test_refusals(change, message: str) -> None:
    names = ADD_LAYER_NORM_QUANTIZE.fwd.argument_names()[:-1]
    arguments = dict.fromkeys(names) | {"x": torch.ones(2, 5), "eps": 1e-5, "out_dtype": FP32} | change
    with pytest.raises(ValueError, match=message):
        ADD_LAYER_NORM_QUANTIZE.fwd.check(**arguments)
