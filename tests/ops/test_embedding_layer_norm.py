"""The op embedding_layer_norm: kernels and composition against float64, ids, dropout, odd memory, bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from ops.test_row_dropout import numpy_keep

from fasttx.ops.backends import BackendError
from fasttx.ops.dropout import rows as row_dropout
from fasttx.ops.embedding_layer_norm import cuda as embedding_layer_norm_cuda
from fasttx.ops.embedding_layer_norm import op
from fasttx.ops.embedding_layer_norm.composed import sum_dtype, table_gradient
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

pytest.importorskip("triton", reason="triton is not installed")
from fasttx.kernels import embedding_layer_norm as kernels

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor
fwd = torch.ops.fasttx.embedding_layer_norm_fwd.default
bwd = torch.ops.fasttx.embedding_layer_norm_bwd.default
FP32, BF16 = torch.float32, torch.bfloat16
DTYPES = [FP32, torch.float16, BF16]
BACKENDS = ["triton", "cuda", "torch"]
WRITTEN = ["triton", "cuda"]
each_written = pytest.mark.parametrize("backend", WRITTEN)
NAN = math.nan
SEED, OFFSET, TAG = 0x1234567890ABCDE, 99, 2
TABLES = ("word", "position", "token_type", "weight", "bias")


def state_on(device):
    return torch.tensor([SEED, OFFSET], device=device)


def own(ids, tensors, factor, eps, dtype):
    """torch's own operators in `dtype`: what a user would write; factor is keep / (1 - p)."""
    word, position, token_type, weight, bias = (None if t is None else t.to(dtype) for t in tensors)
    z = torch.nn.functional.embedding(ids[0], word)
    for index, table in ((ids[2], token_type), (ids[1], position)):
        if table is not None:
            z = z + torch.nn.functional.embedding(index, table).repeat(len(z) // max(len(index), 1), 1)
    out = torch.nn.functional.layer_norm(z, (z.shape[-1],), weight, bias, eps)
    return (out if factor is None else out * factor.to(dtype)), z


def own_with_gradients(ids, tensors, factor, eps, dtype, dout):
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    out, z = own(ids, leaves, factor, eps, dtype)
    wanted = [z, *(t for t in leaves[2:] if t is not None)]
    found = iter(torch.autograd.grad(out, wanted, dout.to(dtype)))
    return out.detach(), next(found), *(None if t is None else next(found) for t in leaves[2:])


def factor_of(backend, n_rows, n_cols, row_index, rng_state, p):
    """keep / (1 - p), in float64, by the mask that `backend` applies; the kernels' from NumPy."""
    if rng_state is None:
        return None
    if backend == "torch" and row_index is None:
        keep = row_dropout.drawn_keep(rng_state, torch.Size((n_rows, n_cols)), TAG, p)
    else:
        rows = np.arange(n_rows) if row_index is None else row_index.cpu().numpy().astype(np.int64)
        keep = torch.from_numpy(numpy_keep(SEED, OFFSET, rows, n_cols, TAG, row_dropout.threshold(p)))
    return keep.to(rng_state.device).double() * row_dropout.keep_scale(p)


def hold(backend, ids, tensors, p=0.0, eps=1e-5, row_index=None, dout=None, dtype=None):
    """Forward and backward on `backend`, held to float64 and to torch's own operators."""
    word, position, token_type, weight, bias = tensors
    out_dtype = sum_dtype(word, position, token_type) if dtype is None else dtype
    n_rows, n_cols = ids[0].shape[0], word.shape[1]
    rng_state = state_on(word.device) if p > 0.0 else None
    dout = torch.randn(n_rows, n_cols, device=word.device).to(out_dtype) if dout is None else dout
    names = [("embedding_layer_norm_fwd", backend), ("embedding_layer_norm_bwd", backend)]
    before = [LAUNCHES[name] for name in names]
    arguments = (ids[0], word, ids[1], position, ids[2], token_type, weight, bias)
    out, mean, rstd = fwd(*arguments, row_index, rng_state, p, eps, out_dtype, backend)
    summed = token_type is not None and token_type.shape[0] <= op.MAX_TYPES
    needs = (True, summed, weight is not None, bias is not None)
    grads = bwd(dout, *arguments, mean, rstd, row_index, rng_state, p, *needs, backend)
    if n_rows:
        assert [LAUNCHES[name] for name in names] == [n + 1 for n in before]
    factor = factor_of(backend, n_rows, n_cols, row_index, rng_state, p)
    expected = own_with_gradients(ids, tensors, factor, eps, torch.float64, dout)
    dtypes = {t.dtype for t in (*tensors, dout) if t is not None}
    least = FP32 if len(dtypes) > 1 else dtypes.pop()  # a rounded z or weight would be torch's error
    same = own_with_gradients(ids, tensors, factor, eps, least, dout)
    dz_dtype = sum_dtype(word, position, token_type)
    for name, found, own_one, ref, like in zip(
        ("out", "dz", "dtoken_type", "dweight", "dbias"), (out, *grads), same, expected,
        (out_dtype, dz_dtype, *(None if t is None else t.dtype for t in tensors[2:])),
    ):  # fmt: skip
        if ref is None or (name == "dtoken_type" and not summed):
            assert found.shape == (0,)
            continue
        assert_as_accurate(found, own_one.to(like), ref, name)
    return out, *grads


def case(n_rows, n_cols, device, dtype=FP32, types=2, period=None, vocab=23, index_dtype=torch.int64):
    """Random ids and tensors; `period`: how many positions and types there are."""
    period = period or n_rows
    sizes = [vocab, period + 2, types]
    ids = [
        torch.randint(0, size, (n,), device=device).to(index_dtype) for size, n in zip(sizes, (n_rows, period, period))
    ]
    tables = [torch.randn(size, n_cols, device=device).to(dtype) for size in sizes]
    weight, bias = (torch.randn(n_cols, device=device).to(dtype) for _ in range(2))
    return ids, [*tables, weight + 1, bias]


# -------------------------------------------------------------------------------------------------------- lengths

# 1; around 16, the columns of one Philox call; around 128, where one tile holds 16 rows; MiniLM's, BERT's; around
# 1,024, the last length of two rows a tile; where the warps change; the longest row, and one odd
LENGTHS = [(n, dtype) for n in (1, 2, 15, 16, 17, 127, 128, 129, 384, 768, 1024, 1025) for dtype in (FP32, BF16)]
LENGTHS += [(768, torch.float16), (2048, BF16), (2049, FP32), (4095, BF16), (4096, FP32)]


# lengths at which CUDA C++ takes other threads, forward or backward; 8-column runs whole and not; the longest row slow
CUDA_LENGTHS = [(n, dtype) for n in (1, 7, 8, 9, 17, 384, 512, 513) for dtype in (FP32, BF16)]
CUDA_LENGTHS += [(768, torch.float16), (1024, FP32), (1025, BF16), (2056, FP32)]
LENGTHS = [pytest.param("triton", n, dtype, marks=[pytest.mark.slow] * (n > 2049)) for n, dtype in LENGTHS]
LENGTHS += [pytest.param("cuda", *length) for length in CUDA_LENGTHS]
LENGTHS += [pytest.param("cuda", 4096, BF16, marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend, n_cols, dtype", LENGTHS, ids=str)
def test_lengths(device, backend, n_cols, dtype):
    n_rows = 35 if n_cols < 512 else 3 if n_cols < 2048 else 2  # more than one program, the last one partly beyond
    eps = 1e-2 if n_cols < 3 else 1e-5  # else rstd is as large as 1 / sqrt(eps), and no dtype is accurate
    hold(backend, *case(n_rows, n_cols, device, dtype), 0.1, eps)
    hold(backend, *case(n_rows, n_cols, device, dtype, types=1), 0.0, eps)


@pytest.mark.parametrize("n_cols, n_rows, programs", [(200, 74, 3), (768, 23, 5), (2048, 11, 4)])
def test_a_program_takes_several_tiles(device, monkeypatch, n_cols, n_rows, programs):
    """More tiles than programs, and a number of rows that neither divides: sums run over tiles, programs and rows."""
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    hold("triton", *case(n_rows, n_cols, device), 0.1)


@pytest.mark.parametrize("n_cols, programs", [(40, 3), (600, 2), (1030, 5)])
def test_a_block_takes_several_rows(device, monkeypatch, n_cols, programs):
    """As above in CUDA C++: of a warp a row, four rows a block, and of one row a block."""
    monkeypatch.setattr(embedding_layer_norm_cuda, "PROGRAMS", programs)
    ids, tensors = case(13, n_cols, device)
    hold("cuda", ids, tensors, 0.1)
    hold("cuda", ids, [*tensors[:3], None, tensors[4]])
    monkeypatch.setattr(embedding_layer_norm_cuda, "PROGRAMS", 11)  # more than a warp each of the second kernel
    hold("cuda", ids, [*tensors[:4], None])


@pytest.mark.parametrize("absent", [3, 4])
def test_sums_of_many_programs(device, absent):
    """More than one tile of the second kernel; the sums for the types come after those that there are."""
    ids, tensors = case(67, 768, device)
    assert 33 < 67 / kernels.config("bwd", 768).rows < kernels.PROGRAMS
    tensors[absent] = None
    hold("triton", ids, tensors)


@each_written
def test_rows_beyond_the_kernel_are_refused_with_the_reason(device, backend):
    ids, tensors = case(2, 4097, device)
    with pytest.raises(BackendError, match="at most 4096 columns"):
        hold(backend, ids, tensors)
    hold("torch", ids, tensors, 0.1)


def test_the_limits_agree():
    assert (kernels.MAX_COLS, kernels.MAX_TYPES) == (op.MAX_COLS, op.MAX_TYPES)


# ---------------------------------------------------------------------------------------------------- ids and tables


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("absent", [*itertools.combinations(TABLES[1:], 1), ("position", "token_type"), TABLES[1:]])
def test_none(device, backend, absent):
    ids, tensors = case(9, 101, device)
    tensors = [None if name in absent else t for name, t in zip(TABLES, tensors)]
    ids = [ids[0], *(None if t is None else i for i, t in zip(ids[1:], tensors[1:]))]
    hold(backend, ids, tensors, 0.3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("period, types, index_dtype", [(1, 1, torch.int32), (5, 2, torch.int64), (15, 3, torch.int32)])
def test_ids_that_repeat(device, backend, period, types, index_dtype):
    hold(backend, *case(30, 50, device, types=types, period=period, index_dtype=index_dtype), 0.2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_needed_is_computed(device, backend):
    ids, (word, position, token_type, weight, bias) = case(9, 101, device)
    arguments = (ids[0], word, ids[1], position, ids[2], token_type, weight, bias)
    state, dout = state_on(device), torch.randn(9, 101, device=device)
    _, mean, rstd = fwd(*arguments, None, state, 0.3, 1e-5, FP32, backend)

    def call(*needs):
        return bwd(dout, *arguments, mean, rstd, None, state, 0.3, *needs, backend)

    everything = call(True, True, True, True)
    for needs in itertools.product((True, False), repeat=4):
        for found, full, need in zip(call(*needs), everything, needs):
            assert torch.equal(found, full) if need else found.shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes, weight_dtype", [((BF16, FP32, BF16), BF16), ((BF16, BF16, BF16), FP32),
                                                  ((torch.float16, BF16, torch.float16), torch.float16)])  # fmt: skip
def test_mixed_dtypes(device, backend, dtypes, weight_dtype):
    ids, tensors = case(9, 101, device)
    tensors = [t.to(d) for t, d in zip(tensors, (*dtypes, weight_dtype, weight_dtype))]
    out, dz, *_ = hold(backend, ids, tensors, 0.2)
    assert out.dtype == dz.dtype == sum_dtype(*tensors[:3])
    assert hold(backend, ids, tensors, dtype=FP32)[0].dtype == FP32


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sum_is_not_rounded(device, backend):
    """1 + 2^-9 in bfloat16 is 1: a sum that is rounded loses every position, and the rows become constant."""
    word = torch.ones(2, 64, device=device, dtype=BF16)
    position = (torch.arange(64, device=device) % 2 * 2.0**-9).to(BF16)[None]
    ids, zero = torch.tensor([0, 1], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    out = fwd(ids, word, zero, position, *(None,) * 6, 0.0, 1e-12, BF16, backend)[0]
    assert torch.equal(out[0], (torch.arange(64, device=device) % 2 * 2.0 - 1.0).to(BF16))


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("bad", [-1, 10**9, None], ids=str)
@each_written
def test_an_id_outside_of_its_table_reads_nothing_and_gives_nan(device, monkeypatch, backend, which, bad):
    """On a GPU, where the values are not read; None stands for the first number that is too large."""
    monkeypatch.setattr(op, "check_index_values", lambda *_: None)
    ids, (word, position, token_type, weight, bias) = case(7, 33, device)
    table = (word, position, token_type)[which]
    ids[which][2] = table.shape[0] if bad is None else bad
    arguments = (ids[0], word, ids[1], position, ids[2], token_type, weight, bias)
    out, mean, rstd = fwd(*arguments, None, None, 0.0, 1e-5, FP32, backend)
    dz = bwd(torch.ones_like(out), *arguments, mean, rstd, None, None, 0.0, True, False, False, False, backend)[0]
    for t in (out, dz):
        assert t[2].isnan().all() and t[[0, 1, 3, 4, 5, 6]].isfinite().all()


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("which, name", list(enumerate(("ids", "position_ids", "type_ids"))))
@pytest.mark.parametrize("low", [True, False])
def test_values_are_checked_where_they_may_be_read(device, monkeypatch, backend, which, name, low):
    monkeypatch.setenv("FASTTX_CHECK", "1")
    ids, tensors = case(7, 33, device)
    bad = ids[which][2] = -3 if low else tensors[which].shape[0]
    rows = tensors[which].shape[0]
    with pytest.raises(ValueError, match=rf"^{name}: got {int(bad)}; allowed is rows 0 to {rows - 1} of the table$"):
        hold(backend, ids, tensors)


# ----------------------------------------------------------------------------------------------- gradients of tables


@pytest.mark.parametrize("period", [12, 4, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding_idx", [-1, 2])
def test_table_gradient(device, period, dtype, padding_idx):
    dz, ids = torch.randn(12, 9, device=device).to(dtype), torch.randint(0, 5, (period,), device=device)
    ids[0] = 2
    tables = [torch.zeros(5, 9, dtype=d, device=device, requires_grad=True) for d in (torch.float64, dtype)]
    for table in tables:
        whole = torch.nn.functional.embedding(ids.repeat(12 // period), table, None if padding_idx < 0 else padding_idx)
        whole.backward(dz.to(table.dtype))
    found = table_gradient(dz, ids, 5, padding_idx)
    assert_as_accurate(found.to(dtype), tables[1].grad, tables[0].grad)
    assert padding_idx < 0 or bool((found[padding_idx] == 0).all())


# ---------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.999])
def test_dropout(device, backend, p):
    ids, tensors = case(9, 101, device)
    out, *_ = hold(backend, ids, tensors, p)
    assert torch.equal(out != 0, factor_of(backend, 9, 101, None, state_on(device), p) != 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_numbered_rows_drop_the_same_packed_and_padded(device, backend, index_dtype):
    ids, tensors = case(18, 50, device)
    number = torch.arange(18, device=device, dtype=index_dtype)
    real = (torch.tensor([6, 2, 4], device=device)[:, None] > torch.arange(6, device=device)).flatten()
    whole = hold(backend, ids, tensors, 0.4, row_index=number)[0]
    packed = [i[real] for i in ids]
    assert torch.equal(hold(backend, packed, tensors, 0.4, row_index=number[real])[0], whole[real])
    strided = torch.stack([number[real], number[real] + 5], 1)[:, 0]
    assert torch.equal(hold(backend, packed, tensors, 0.4, row_index=strided)[0], whole[real])
