"""The softmax op: kernels and composition against float64, masks, dropout, long rows, odd memory."""

from __future__ import annotations

import math

import pytest
import torch
from ops.guard_bytes import surrounded

from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.dropout import rows as row_dropout
from fasttx.ops.registry import LAUNCHES
from fasttx.ops.softmax import cuda as softmax_cuda
from fasttx.ops.softmax import op
from fasttx.testing import assert_as_accurate

pytest.importorskip("triton", reason="triton is not installed")
from fasttx.kernels import softmax as kernels

# numpy's, about -inf - -inf in rows beyond the tensor and in rows that are to be NaN
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
fwd, bwd = torch.ops.fasttx.softmax_fwd.default, torch.ops.fasttx.softmax_bwd.default
BACKENDS = ["triton", "cuda", "torch"]
WRITTEN = ["triton", "cuda"]
NAN, INF = math.nan, math.inf


def own(x, mask, keep, scale, log):
    """torch's own operators in the dtype of x: what a user would write; keep has the factor 1 / (1 - p) in it."""
    s = x * scale if scale != 1.0 else x
    if mask is not None:
        s = s.masked_fill(~mask, -INF) if mask.dtype == torch.bool else s + mask.to(x.dtype)
        nothing = (s == -INF).all(-1, keepdim=True)
        s = s.masked_fill(nothing, 0.0)
        out = torch.log_softmax(s, -1) if log else torch.softmax(s, -1)
        out = out.masked_fill(nothing, -INF if log else 0.0)
    else:
        out = torch.log_softmax(s, -1) if log else torch.softmax(s, -1)
    return out if keep is None else out * keep.to(x.dtype)


def own_with_gradient(x, mask, keep, scale, log, dout):
    x = x.detach().clone().requires_grad_()
    out = own(x, mask, keep, scale, log)
    if log and mask is not None:  # masked elements are constants: they take no gradient
        dout = dout.masked_fill(out == -INF, 0.0)
    (dx,) = torch.autograd.grad(out, x, dout.to(out.dtype))
    return out.detach(), dx.nan_to_num(nan=0.0) if log and mask is not None else dx


def keep_of(backend, rng_state, x, p):
    """The mask that `backend` applies, with its factor, in float64."""
    if rng_state is None:
        return None
    if backend == "torch":
        keep = row_dropout.drawn_keep(rng_state, x.shape, 0, p).double()
    else:
        rows = torch.arange(x.shape[:-1].numel(), device=x.device)
        keep = row_dropout.row_keep(rng_state, rows, x.shape[-1], 0, p).reshape(x.shape).double()
    return keep * row_dropout.keep_scale(p)


def skip_unless_runnable(backend, x):
    reason = op.SOFTMAX.reasons(x)[backend]
    if reason is not None:
        pytest.skip(f"softmax on {backend}: {reason}")


@pytest.fixture(autouse=True)
def _runnable(request, device):
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    backend = "cuda" if parameters.get("launchers") is softmax_cuda else parameters.get("backend")
    if backend is not None:
        skip_unless_runnable(backend, torch.ones(1, device=device))


def hold(backend, x, mask=None, p=0.0, scale=1.0, log=False, dout=None, least=0.0):
    """Forward and backward on `backend`, held to float64 and to torch's own operators in the same dtype.

    `least` is the size of the terms of a gradient that is 0 because they cancel.
    """
    skip_unless_runnable(backend, x)
    rng_state = torch.tensor([0x1234567890ABCDE, 99], device=x.device) if p > 0.0 else None
    before = LAUNCHES["softmax_fwd", backend], LAUNCHES["softmax_bwd", backend]
    out = fwd(x, mask, rng_state, scale, p, log, backend)
    dout = torch.randn(x.shape, device=x.device, dtype=x.dtype) if dout is None else dout
    dx = bwd(dout, out if rng_state is None else x, mask, rng_state, scale, p, log, backend)
    ran = "torch" if x.numel() == 0 else backend
    if ran == backend:
        assert (LAUNCHES["softmax_fwd", backend], LAUNCHES["softmax_bwd", backend]) == (before[0] + 1, before[1] + 1)
    keep = keep_of(backend, rng_state, x, p)
    ref_out, ref_dx = own_with_gradient(x.double(), mask, keep, scale, log, dout.double())
    same_out, same_dx = own_with_gradient(x, mask, keep, scale, log, dout)
    assert_as_accurate(out, same_out, ref_out, "out", by="element")
    assert_as_accurate(dx, same_dx, ref_dx, "dx", least=least)
    return out, dx


# -------------------------------------------------------------------------------------------------------- lengths

# 1; around 16, the columns of one Philox call; around 128, where one tile holds 16 rows; around 1,024, the last length
# with two rows a tile; 8,191 odd, one row a block of many warps. In CUDA C++ a warp has rows of at most 512, 128
# threads rows of 2,048, 512 threads rows of 8,192
LENGTHS = [1, 2, 15, 16, 17, 127, 128, 129, 512, 513, 1000, 1024, 1025, 2048, 2049, 8191]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", LENGTHS)
@pytest.mark.parametrize("backend", WRITTEN)
def test_lengths(device, backend, n_cols, dtype):
    n_rows = 35 if n_cols < 512 else 3  # more than one program, the last one partly beyond the tensor
    x = 3 * torch.randn(n_rows, n_cols, device=device, dtype=dtype)
    hold(backend, x)
    hold(backend, x, log=True)


# the last length of one block and the first of several, forward (32,768) and backward (16,384), and vocabularies; in
# CUDA C++ a row of more than 8,192 is read twice
LONG = [8193, 16384, 16385, 32768, 32769, 65536, 262144]


@pytest.mark.parametrize("n_cols", LONG)
@pytest.mark.parametrize("backend", WRITTEN)
def test_long_rows(device, backend, n_cols):
    x = 3 * torch.randn(2, n_cols, device=device)
    x[0, -1] = 40.0  # the maximum moves in the last block
    for log in (False, True):
        hold(backend, x, log=log)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", WRITTEN)
def test_long_rows_with_everything(device, backend, dtype):
    n_cols = 33001
    x = torch.randn(2, n_cols, device=device, dtype=dtype)
    mask = torch.rand(1, n_cols, device=device) < 0.5
    mask[:, :9000] = False  # a whole block without a score comes first
    hold(backend, x, mask, p=0.3, scale=0.5)
    hold(backend, x, mask, scale=0.5, log=True)
    hold(backend, x, torch.zeros(2, n_cols, device=device, dtype=dtype).masked_fill(~mask, -INF), p=0.3)


def test_the_configuration_is_a_function_of_the_length():
    for kernel, (_, longest, block, _) in kernels.TABLE.items():
        for n_cols in (*range(1, 2100), 4097, longest - 1, longest, longest + 1, 262144):
            c = kernels.config(kernel, n_cols)
            assert c.block_n % 16 == 0 and c.block_n & (c.block_n - 1) == 0 and 1 <= c.num_warps <= 32
            assert c.multi == (n_cols > longest)
            assert c.block_n == block and c.rows == 1 if c.multi else n_cols <= c.block_n < max(2 * n_cols, 17)
            assert c.rows * c.block_n >= 32 * c.num_warps * 8  # a whole 16-byte access of halves for each thread


# ---------------------------------------------------------------------------------------------------------- masks


def masks(device):
    """Every way a mask may broadcast over (3, 2, 5, 37), with masked rows in it."""
    lengths = torch.tensor([37, 11, 0], device=device)
    key = (torch.arange(37, device=device) < lengths[:, None])[:, None, None, :]
    full = torch.rand(3, 2, 5, 37, device=device) < 0.6
    full[1, 1, 2] = False
    yield "key", key
    yield "full", full
    yield "query_key", full[:1, :1]
    yield "head", full[:1, :, :1, :1]
    yield "rows", full[:, :, :, :1]
    yield "one", torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    yield "transposed", full.transpose(2, 3).contiguous().transpose(2, 3)
    yield "add_key", torch.zeros(3, 1, 1, 37, device=device).masked_fill(~key, -INF)
    yield "add_smallest", torch.zeros(3, 1, 1, 37, device=device).masked_fill(~key, torch.finfo(torch.float16).min)
    yield "add_head", torch.randn(1, 2, 5, 37, device=device)
    yield "add_half", torch.randn(3, 1, 5, 1, device=device, dtype=torch.float16)


MASKS = [name for name, _ in masks(torch.device("cpu"))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MASKS)
def test_masks(device, backend, name):
    mask = dict(masks(device))[name]
    x = torch.randn(3, 2, 5, 37, device=device)
    hold(backend, x, mask, scale=0.3)
    hold(backend, x, mask, scale=-2.0, p=0.2)
    hold(backend, x, mask, log=True)


@pytest.mark.parametrize("backend", WRITTEN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_negative_scale_makes_the_smallest_element_the_largest_score(backend, dtype, device):
    """Over a range whose exponentials overflow, relative to any other score; in whole vectors, which kernels may scale
    later, and in a row with an end."""
    for n_cols in (512, 500):
        x = (torch.randn(3, n_cols, device=device) * 60).to(dtype)
        hold(backend, x, scale=-3.0, least=0.01)  # rows are nearly one-hot: the terms of dx cancel
        hold(backend, x, scale=-3.0, p=0.2, least=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_in_every_dtype(device, backend, dtype):
    x = torch.randn(3, 2, 5, 37, device=device, dtype=dtype)
    for name in ("key", "add_head"):
        hold(backend, x, dict(masks(device))[name], scale=0.3, p=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_cols", [40, 33000])
def test_a_masked_row_gives_zeros_and_no_gradient(device, backend, n_cols):
    x = torch.randn(1, n_cols, device=device)
    state = torch.tensor([1, 2], device=device)
    for mask in (torch.zeros(1, 1, dtype=torch.bool, device=device), torch.full((1, n_cols), -INF, device=device)):
        out = fwd(x, mask, None, 1.0, 0.0, False, backend)
        assert bool((out == 0).all())
        assert bool((bwd(x, out, mask, None, 1.0, 0.0, False, backend) == 0).all())
        assert bool((fwd(x, mask, state, 1.0, 0.5, False, backend) == 0).all())
        assert bool((bwd(x, x, mask, state, 1.0, 0.5, False, backend) == 0).all())
        out = fwd(x, mask, None, 1.0, 0.0, True, backend)
        assert bool((out == -INF).all())
        assert bool((bwd(x, out, mask, None, 1.0, 0.0, True, backend) == 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_cols", [40, 33000])
@pytest.mark.parametrize("log", [False, True])
def test_infinities_and_nan_as_torch(device, backend, n_cols, log):
    x = torch.randn(5, n_cols, device=device)
    x[0] = -INF
    x[1, 3] = INF
    x[2, n_cols - 1] = NAN
    x[3, 5:] = -INF
    out = fwd(x, None, None, 1.0, 0.0, log, backend)
    expected = torch.log_softmax(x, -1) if log else torch.softmax(x, -1)
    torch.testing.assert_close(out, expected, equal_nan=True, atol=2e-6, rtol=2e-6)


# -------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.999, 1.0])
def test_dropout(device, backend, p):
    x = torch.randn(9, 101, device=device)
    hold(backend, x, p=p)
    state = torch.tensor([5, 6], device=device)
    out = fwd(x, None, state, 1.0, p, False, backend)
    assert torch.equal(out != 0, keep_of(backend, state, x, p) != 0)
    assert torch.equal(out, fwd(x, None, state.clone(), 1.0, p, False, backend))


@pytest.mark.parametrize("backend", WRITTEN)
def test_the_dropout_mask_does_not_depend_on_the_tile(device, backend):
    state = torch.tensor([5, 6], device=device)
    narrow = fwd(torch.zeros(3, 64, device=device), None, state, 1.0, 0.5, False, backend) != 0
    wide = fwd(torch.zeros(3, 17000, device=device), None, state, 1.0, 0.5, False, backend) != 0
    assert torch.equal(narrow, wide[:, :64])


# --------------------------------------------------------------------------------------------------- memory, bits


@pytest.mark.parametrize("n_cols", [13, 1025, 33001])
@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("launchers", [kernels, softmax_cuda], ids=WRITTEN)
def test_nothing_outside_of_the_tensors_is_read_or_written(device, launchers, n_cols, p):
    x, _ = surrounded((3, n_cols), NAN, device)
    dout, _ = surrounded((3, n_cols), NAN, device)
    x.normal_(), dout.normal_()
    mask, _ = surrounded((1, n_cols), NAN, device)
    mask.zero_()
    state = torch.tensor([1, 2], device=device) if p else None
    out, out_buffer = surrounded((3, n_cols), 7.0, device)
    dx, dx_buffer = surrounded((3, n_cols), 7.0, device)
    out.fill_(NAN), dx.fill_(NAN)
    launchers.softmax_fwd(out, x, mask, state, 1.0, p, False)
    launchers.softmax_bwd(dx, dout, x if p else out, mask, state, 1.0, p, False)
    for inner, buffer in ((out, out_buffer), (dx, dx_buffer)):
        assert bool(inner.isfinite().all()), "an element was not written, or one outside was read"
        assert bool((buffer[:24] == 7.0).all()) and bool((buffer[-24:] == 7.0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_misaligned_inputs(device, backend):
    base = torch.randn(4, 6, 50, device=device)
    dout = torch.randn(4, 6, 41, device=device)
    for x in (base[:, :, 3:44], base[:, :, ::1][..., 1:42], base.transpose(0, 1)[..., :41].transpose(0, 1)):
        hold(backend, x, dout=dout)
        hold(backend, x, p=0.25, dout=dout)
    # columns strided, rows at two strides
    hold(backend, base[:, 1:5, :40], dout=torch.randn(40, 4, 4, device=device).permute(2, 1, 0))
    hold(backend, base.transpose(1, 2), dout=torch.randn(1, device=device).expand(4, 50, 6), least=1.0)
    hold(backend, base[:1, :1].expand(4, 6, 50), torch.rand(50, 6, device=device).T[None] < 0.5, p=0.25)


@pytest.mark.parametrize("backend", WRITTEN)
def test_bitwise_deterministic(device, backend):
    x = torch.randn(5, 3001, device=device)
    state = torch.tensor([1, 2], device=device)
    first = [fwd(x, None, state, 1.0, 0.1, False, backend), bwd(x, x, None, state, 1.0, 0.1, False, backend)]
    again = [fwd(x, None, state, 1.0, 0.1, False, backend), bwd(x, x, None, state, 1.0, 0.1, False, backend)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (2, 0, 3)])
def test_empty(device, shape):
    for backend in BACKENDS:
        for mask in (None, torch.ones([1] * len(shape), dtype=torch.bool, device=device)):
            hold(backend, torch.empty(shape, device=device), mask)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU with 24 GiB")
def test_more_than_two_to_the_31_elements():
    x = torch.randn(2**16 + 3, 2**15 + 8, device="cuda", dtype=torch.bfloat16)
    out = fwd(x, None, None, 1.0, 0.0, False, "triton")
    assert_as_accurate(out[-3:], x[-3:].softmax(-1), x[-3:].double().softmax(-1))
    state = torch.tensor([1, 2], device="cuda")
    dx = bwd(x, x, None, state, 1.0, 0.5, False, "triton")
    expected = op.SOFTMAX.bwd.reference(x[:2], x[:2], None, state, 1.0, 0.5, False)
    assert_as_accurate(dx[:2], expected.bfloat16(), expected)


# ------------------------------------------------------------------------------------------------------ hypothesis


def test_any_call(device):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @st.composite
    def calls(draw):
        shape = draw(st.lists(st.integers(1, 4), min_size=0, max_size=3)) + [draw(st.integers(1, 40))]
        kind = draw(st.sampled_from(["none", "bool", "add"]))
        mask_shape = [draw(st.sampled_from(sorted({1, n}))) for n in shape]
        return {
            "shape": shape,
            "mask": None if kind == "none" else (kind, mask_shape),
            "scale": draw(st.sampled_from([1.0, 0.125, -3.0, 0.0])),
            "p": draw(st.sampled_from([0.0, 0.2])),
            "log": draw(st.booleans()),
            "dtype": draw(st.sampled_from(DTYPES)),
            "backend": draw(st.sampled_from(BACKENDS)),
            "seed": draw(st.integers(0, 2**31)),
        }

    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(call=calls())
    def holds(call):
        torch.manual_seed(call["seed"])
        x = torch.randn(call["shape"], device=device, dtype=call["dtype"])
        mask = None
        if call["mask"] is not None:
            kind, shape = call["mask"]
            mask = torch.rand(shape, device=device) < 0.7 if kind == "bool" else torch.randn(shape, device=device)
        hold(call["backend"], x, mask, 0.0 if call["log"] else call["p"], call["scale"], call["log"])

    holds()
