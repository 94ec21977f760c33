"""The op bias_gelu: kernels and composition against float64, both tails, dropout, widths, odd memory, bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fasttx.ops.backends import BackendError
from fasttx.ops.bias_gelu import cuda as bias_gelu_cuda
from fasttx.ops.bias_gelu import op
from fasttx.ops.dropout import rows as row_dropout
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

pytest.importorskip("triton", reason="triton is not installed")
import numpy as np
from ops.test_row_dropout import numpy_keep

from fasttx.kernels import bias_gelu as kernels

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's: exponentials of infinities
fwd = torch.ops.fasttx.bias_gelu_fwd.default
bwd = torch.ops.fasttx.bias_gelu_bwd.default
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = [FP32, FP16, BF16]
WRITTEN = ["triton", "cuda"]
each_backend = pytest.mark.parametrize("backend", [*WRITTEN, "torch"])
each_written = pytest.mark.parametrize("backend", WRITTEN)
each_form = pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])
NAN, INF = math.nan, math.inf
SEED, OFFSET = 0x1234567890ABCDE, 99


def state_on(device):
    return torch.tensor([SEED, OFFSET], device=device)


def own_with_gradients(x, bias, factor, tanh, dtype, dout):
    """torch's own operators in `dtype`: what a user would write; factor is keep / (1 - p)."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (x, bias)]
    z = leaves[0] if bias is None else leaves[0] + leaves[1]
    out = F.gelu(z, approximate="tanh" if tanh else "none")
    if factor is not None:
        out = out * factor.to(dtype)
    found = torch.autograd.grad(out, [t for t in leaves if t is not None], dout.to(dtype))
    return out.detach(), found[0], found[1] if bias is not None else None


def factor_of(backend, x, row_index, rng_state, p):
    """keep / (1 - p), in float64, by the mask that `backend` applies; the kernels' from NumPy."""
    if rng_state is None:
        return None
    if backend == "torch" and row_index is None:
        keep = row_dropout.drawn_keep(rng_state, x.shape, 3, p)
    else:
        rows = np.arange(x.shape[:-1].numel()) if row_index is None else row_index.cpu().numpy().astype(np.int64)
        keep = torch.from_numpy(numpy_keep(SEED, OFFSET, rows, x.shape[-1], 3, row_dropout.threshold(p)))
    return keep.reshape(x.shape).to(x.device).double() * row_dropout.keep_scale(p)


def hold(backend, x, bias=None, p=0.0, tanh=False, row_index=None, dout=None):
    """Forward and backward on `backend`, held to float64 and to torch's own operators."""
    rng_state = state_on(x.device) if p > 0.0 else None
    dout = torch.randn(x.shape, device=x.device).to(x.dtype) if dout is None else dout
    names = [("bias_gelu_fwd", backend), ("bias_gelu_bwd", backend)]
    before = [LAUNCHES[name] for name in names]
    out = fwd(x, bias, row_index, rng_state, p, tanh, backend)
    dx, dbias = bwd(dout, x, bias, row_index, rng_state, p, tanh, True, bias is not None, backend)
    if x.numel():
        assert [LAUNCHES[name] for name in names] == [n + 1 for n in before]
    factor = factor_of(backend, x, row_index, rng_state, p)
    expected = own_with_gradients(x, bias, factor, tanh, torch.float64, dout)
    # a rounded z would be torch's error where the bias is wider than x
    least = x.dtype if bias is None or bias.dtype == x.dtype else FP32
    same = own_with_gradients(x, bias, factor, tanh, least, dout)
    for name, found, own, ref, like in zip(("out", "dx", "dbias"), (out, dx, dbias), same, expected, (x, x, bias)):
        if ref is None:
            assert found.shape == (0,)
            continue
        assert_as_accurate(found, own.to(like.dtype), ref, name)
    return out, dx, dbias


def tensors_for(n_rows, n_cols, dtype, device, bias_dtype=None):
    x = (2.0 * torch.randn(n_rows, n_cols, device=device)).to(dtype)
    return x, torch.randn(n_cols, device=device).to(bias_dtype or dtype)


# --------------------------------------------------------------------------------------------------------- widths

# 1; around 16, the columns of one Philox call; around 256, the widest tile; a remainder in the second and third tile
WIDTHS = [(n, dtype, tanh) for n in (16, 257) for dtype in DTYPES for tanh in (False, True)]
WIDTHS += [(n, FP32, False) for n in (1, 15, 101, 256, 700)] + [(n, BF16, True) for n in (2, 17, 255, 512)]


@pytest.mark.parametrize("n_cols, dtype, tanh", WIDTHS, ids=str)
@each_written
def test_widths(device, backend, n_cols, dtype, tanh):
    n_rows = 131 if n_cols < 18 else 35 if n_cols < 200 else 9  # more than one tile of rows, the last one not full
    x, bias = tensors_for(n_rows, n_cols, dtype, device)
    hold(backend, x, bias, 0.1, tanh)
    hold(backend, x, None, 0.0, tanh)


@pytest.mark.slow
@each_form
@pytest.mark.parametrize("n_cols", [1536, 3072, 4096, 5003])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_written
def test_widths_of_models(device, backend, n_cols, dtype, tanh):
    x, bias = tensors_for(37, n_cols, dtype, device)
    for p in (0.0, 0.1):
        hold(backend, x, bias, p, tanh)


@pytest.mark.parametrize("n_cols, tile", [(300, 4), (16, 64)])
def test_a_program_takes_several_tiles(device, monkeypatch, n_cols, tile):
    """More tiles than programs, and a number of rows that neither divides: sums run over tiles, programs and rows."""
    monkeypatch.setattr(kernels, "PROGRAMS", 5)
    assert kernels.config("bwd", n_cols).rows == tile
    x, bias = tensors_for(5 * tile + 3, n_cols, FP32, device)
    hold("triton", x, bias, 0.1)
    monkeypatch.setattr(kernels, "PROGRAMS", 1)  # fewer than there are tiles in a row of 300
    hold("triton", x, bias)


def test_more_programs_than_one_tile_of_the_second_kernel(device, monkeypatch):
    monkeypatch.setattr(kernels, "SUM_ROWS", 4)
    x, bias = tensors_for(21, 257, FP32, device)
    hold("triton", x, bias)


@pytest.mark.parametrize("n_cols, group", [(300, 4), (16, 64), (40, 16)])
def test_a_block_takes_several_tiles(device, monkeypatch, n_cols, group):
    """As above in CUDA C++: `group` rows of 256, 16 and 64 columns are one pass of a block."""
    monkeypatch.setattr(bias_gelu_cuda, "PROGRAMS", 5)
    x, bias = tensors_for(5 * group + 3, n_cols, FP32, device)
    hold("cuda", x, bias, 0.1)
    monkeypatch.setattr(bias_gelu_cuda, "PROGRAMS", 1)  # fewer than there are tiles in a row of 300
    hold("cuda", x, bias)
    monkeypatch.setattr(bias_gelu_cuda, "PROGRAMS", 21)  # more than a warp each of the second kernel
    hold("cuda", x, bias)


def test_plain_gelu_runs_over_all_elements_as_rows_of_the_tile(device):
    """Rows of 12 would leave a quarter of the lanes idle; where memory has gaps they remain rows of 12."""
    x = torch.randn(128, 12, device=device)
    assert kernels._length_of_rows(x, True) == kernels._length_of_rows(x, True, x) == 256
    assert kernels._length_of_rows(x, False) == kernels._length_of_rows(x[:127], True) == 12
    gaps = torch.randn(128, 13, device=device)[:, :12]
    assert kernels._length_of_rows(gaps, True) == kernels._length_of_rows(x, True, gaps) == 12
    for backend in WRITTEN:
        hold(backend, x, dout=x.flip(0))
        hold(backend, gaps, dout=x)
        hold(backend, x, dout=gaps)
    assert [t.shape[1] for t in bias_gelu_cuda._in_rows(True, x, x)] == [256, 256]
    assert [t.shape[1] for t in bias_gelu_cuda._in_rows(True, x, gaps)] == [12, 12]
    assert [t.shape[1] for t in bias_gelu_cuda._in_rows(False, x)] == [12]


def test_the_configuration_is_a_function_of_the_width():
    for kernel in kernels.TABLE:
        for n_cols in (*range(1, 600), 3072, 30_522):
            c = kernels.config(kernel, n_cols)
            assert c.block_n & (c.block_n - 1) == 0 and 16 <= c.block_n <= 256
            assert c.block_n == 256 or n_cols <= c.block_n < max(2 * n_cols, 17)
            assert c.rows * c.block_n >= 32 * c.num_warps * 8  # 16 bytes of halves a thread


def test_what_does_not_fit_32_bits_is_refused():
    for shape in ((2**31 - 2048, 1), (1, 2**31 - 2048)):
        x = torch.empty(1, dtype=BF16).expand(shape)
        assert "counted in 32 bits" in op.BIAS_GELU.reasons(x)["triton"]
    with pytest.raises(BackendError, match="counted in 32 bits"):
        op.BIAS_GELU.choice("triton", x)


@each_backend
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("with_bias", [False, True])
def test_only_what_is_needed_is_computed(device, backend, p, with_bias):
    x, bias = tensors_for(9, 101, FP32, device)
    bias, rng_state = bias if with_bias else None, state_on(device) if p else None

    def call(*needs):
        return bwd(x, x, bias, None, rng_state, p, False, *needs, backend)

    everything = call(True, with_bias)
    for needs in ((False, False), (True, False), (False, with_bias)):
        for found, full, need in zip(call(*needs), everything, needs):
            assert torch.equal(found, full) if need else found.shape == (0,)


# -------------------------------------------------------------------------------------------------------- numerics


@each_backend
@each_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tails(device, backend, tanh, dtype):
    """Far out on either side, the largest numbers included; where torch's own result overflows, ours does not."""
    largest = torch.finfo(dtype).max
    far = [0.0, 1e-6, 1e-3, 0.75, 1.0, 3.0, 4.99, 5.5, 8.0, 9.3, 12.0, 38.0, 100.0, 1e4, largest / 2, largest]
    x = torch.tensor([far, [-a for a in far]], device=device).to(dtype)
    ones = torch.ones_like(x)
    out = fwd(x, None, None, None, 0.0, tanh, backend)
    dx, _ = bwd(ones, x, None, None, None, 0.0, tanh, True, False, backend)
    ref = op.BIAS_GELU.fwd.reference(x, None, None, None, 0.0, tanh)
    slope, _ = op.BIAS_GELU.bwd.reference(ones, x, None, None, None, 0.0, tanh, True, False)
    few = slice(0, -2) if backend == "torch" else slice(None)  # torch's own operators overflow at the last two
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(out[:, few].double(), ref[:, few], atol=1e-6, rtol=rounding)
    torch.testing.assert_close(dx[:, few].double(), slope[:, few], atol=1e-6, rtol=rounding)


@each_form
@each_written
def test_the_negative_tail(device, backend, tanh):
    """tanh in the form that is used has no cancellation: the small numbers of the tail keep their digits."""
    x = -torch.linspace(0.0, 6.0, 301, device=device)[None]
    out = fwd(x, None, None, None, 0.0, tanh, backend)
    ref = op.BIAS_GELU.fwd.reference(x, None, None, None, 0.0, tanh)
    torch.testing.assert_close(out.double(), ref, **({"atol": 0, "rtol": 2e-5} if tanh else {"atol": 4e-7, "rtol": 0}))
    assert bool((out <= 0).all())


@each_backend
@each_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_as_in_torch(device, backend, tanh, dtype):
    """As in float64: with AVX-512 PyTorch's gelu(inf) is NaN in float32, which only its own row repeats."""
    x = torch.zeros(3, 20, device=device, dtype=dtype)
    x[0, 3], x[1, 5], x[2, 7] = NAN, INF, -INF
    out = fwd(x, None, None, None, 0.0, tanh, backend)
    same = dtype if backend == "torch" else torch.float64
    own = own_with_gradients(x.to(same), None, None, tanh, same, torch.ones_like(x, dtype=same))
    expected, dx_expected = (t.to(dtype) for t in own[:2])
    torch.testing.assert_close(out, expected, equal_nan=True)
    bias = torch.zeros(20, device=device, dtype=dtype)
    dx, dbias = bwd(torch.ones_like(x), x, bias, None, None, 0.0, tanh, True, True, backend)
    torch.testing.assert_close(dx, dx_expected, equal_nan=True)
    assert dbias.isnan().nonzero().flatten().tolist() == [3, 5, 7]


@each_backend
@each_form
@pytest.mark.parametrize("dtype", [FP16, BF16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_a_float32_bias(device, backend, tanh, dtype, p):
    x, bias = tensors_for(9, 101, dtype, device, FP32)
    *_, dbias = hold(backend, x, bias, p, tanh)
    hold(backend, x, bias, p, tanh, dout=torch.randn(9, 101, device=device))
    assert dbias.dtype == FP32


@each_backend
def test_the_sum_with_a_float32_bias_is_not_rounded(device, backend):
    """64 + 2^-3 in bfloat16 is 64: a rounded sum would give every column the same."""
    x, bias = torch.full((2, 8), -64.0, device=device, dtype=BF16), 64 + torch.arange(8, device=device) * 2.0**-3
    expected = F.gelu(bias - 64).to(BF16)
    assert torch.equal(fwd(x, bias, None, None, 0.0, False, backend), expected.expand(2, 8))


@each_written
def test_dbias_sums_what_was_not_rounded(device, backend):
    """dx in bfloat16 holds 1 + 2^-8 as 1; 512 rows of it add up to 514 nevertheless."""
    x, bias = torch.full((512, 3), 100.0, device=device, dtype=BF16), torch.zeros(3, device=device)
    dout = torch.full((512, 3), 1 + 2.0**-8, device=device)
    dx, dbias = bwd(dout, x, bias, None, None, 0.0, False, True, True, backend)
    assert dbias.tolist() == [514.0] * 3 and bool((dx == 1).all())


# ---------------------------------------------------------------------------------------------------------- dropout


@each_backend
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.999])
def test_dropout(device, backend, p):
    x, bias = torch.rand(9, 301, device=device) + 0.1, None  # neither GELU nor its derivative is 0 there
    out, dx, _ = hold(backend, x, bias, p)
    kept = factor_of(backend, x, None, state_on(device), p) != 0
    assert torch.equal(dx != 0, kept) and torch.equal(out != 0, kept)
    again = fwd(x, bias, None, state_on(device), p, False, backend)
    other = fwd(x, bias, None, state_on(device) + 1, p, False, backend)
    assert torch.equal(out, again) and (p < 0.01 or not torch.equal(out, other))


@each_backend
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_numbered_rows_drop_the_same_packed_and_padded(device, backend, index_dtype):
    padded, bias = torch.randn(3, 6, 50, device=device), torch.randn(50, device=device)
    number = torch.arange(18, device=device, dtype=index_dtype)
    real = torch.tensor([6, 2, 4], device=device)[:, None] > torch.arange(6, device=device)
    packed, packed_number = padded[real], number[real.flatten()]
    whole = hold(backend, padded, bias, 0.4, row_index=number)[0]
    assert torch.equal(hold(backend, packed, bias, 0.4, row_index=packed_number)[0], whole[real])
    if backend != "torch":
        assert torch.equal(fwd(padded, bias, None, state_on(device), 0.4, False, backend), whole)
    strided = torch.stack([packed_number, packed_number + 5], 1)[:, 0]
    hold(backend, packed, None, 0.4, row_index=strided)


# ------------------------------------------------------------------------------------------------ reference, checks


@each_form
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_reference_is_torch_in_float64_and_its_own_gradient(p, tanh):
    x, bias = torch.randn(3, 7, dtype=torch.float64) * 3, torch.randn(7, dtype=torch.float64)
    state, dout = torch.tensor([SEED, OFFSET]) if p else None, torch.randn(3, 7, dtype=torch.float64)
    found = (
        op.BIAS_GELU.fwd.reference(x, bias, None, state, p, tanh),
        *op.BIAS_GELU.bwd.reference(dout, x, bias, None, state, p, tanh, True, True),
    )
    expected = own_with_gradients(x, bias, factor_of("triton", x, None, state, p), tanh, torch.float64, dout)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)
