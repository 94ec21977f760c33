"""The op embedding_layer_norm: strides, guard bytes, bits, empty batches, any call, and the reference's gradient."""

from __future__ import annotations

import pytest
import torch
from ops.guard_bytes import surrounded
from ops.test_embedding_layer_norm import (
    BACKENDS,
    DTYPES,
    FP32,
    NAN,
    TABLES,
    WRITTEN,
    case,
    each_written,
    hold,
    kernels,
    state_on,
)

from fasttx.ops.embedding_layer_norm import cuda as embedding_layer_norm_cuda
from fasttx.ops.embedding_layer_norm import op
from fasttx.ops.embedding_layer_norm.composed import table_gradient

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor


@pytest.mark.parametrize("kernels", [kernels, embedding_layer_norm_cuda], ids=WRITTEN)
@pytest.mark.parametrize("n_cols", [13, 768, 1025])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_nothing_outside_of_the_tensors_is_read_or_written(device, kernels, n_cols, p):
    ids, random = case(3, n_cols, device)
    tensors = [surrounded(t.shape, NAN, device)[0].copy_(t) for t in random]
    dout = surrounded((3, n_cols), NAN, device)[0].normal_()
    state = state_on(device) if p else None
    shapes = [(3, n_cols), (3,), (3,), (3, n_cols), (2, n_cols), (n_cols,), (n_cols,)]
    inner, buffers = zip(*(surrounded(shape, 7.0, device) for shape in shapes))
    for t in inner:
        t.fill_(NAN)
    arguments = (ids[0], tensors[0], ids[1], tensors[1], ids[2], *tensors[2:])
    kernels.embedding_layer_norm_fwd(*inner[:3], *arguments, None, state, p, 1e-5, FP32)
    kernels.embedding_layer_norm_bwd(*inner[3:], dout, *arguments, *inner[1:3], None, state, p, *(True,) * 4)
    for t, buffer in zip(inner, buffers):
        assert bool(t.isfinite().all()), "an element was not written, or one outside was read"
        assert bool((buffer[:24] == 7.0).all()) and bool((buffer[-24:] == 7.0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_misaligned_inputs(device, backend):
    ids, (word, position, token_type, weight, bias) = case(12, 50, device)
    ids = [torch.stack([i, i + 1], 1)[:, 0] for i in ids]
    tables = [word[:, 3:44], position.T.contiguous().T[:, :41], token_type.flip(1)[:, 1:42]]
    tensors = [*tables, torch.stack([weight, bias], 1)[:41, 0], bias[5:46]]
    for dout in (torch.randn(12, 45, device=device)[:, 2:43], torch.randn(41, 12, device=device).T):
        hold(backend, ids, tensors, 0.25, dout=dout)
    hold(backend, ids, tensors, dout=torch.randn(1, 1, device=device).expand(12, 41))
    # whole runs of 8 columns that begin between multiples of 16 bytes
    ids, tensors = case(12, 48, device)
    tensors = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in tensors]
    hold(backend, ids, tensors, dout=torch.randn(12 * 48 + 1, device=device)[1:].view(12, 48))


@each_written
def test_bitwise_deterministic(device, backend):
    ids, tensors = case(19, 384, device)
    dout = torch.randn(19, 384, device=device)
    runs = [hold(backend, ids, tensors, 0.1, dout=dout) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_empty(device, backend, p):
    ids, tensors = case(4, 9, device)
    _, dz, *sums = hold(backend, [i[:0] for i in ids], tensors, p)
    assert dz.shape == (0, 9) and all(bool((t == 0).all()) for t in sums)


# ------------------------------------------------------------------------------------------------------ hypothesis


def test_any_call(device):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=40, deadline=None)
    @hypothesis.given(call=st.fixed_dictionaries({
        "rows": st.tuples(st.integers(1, 6), st.integers(1, 6)), "n_cols": st.integers(3, 70),
        "types": st.integers(1, 3), "dtypes": st.tuples(*[st.sampled_from(DTYPES)] * 5),
        "absent": st.sets(st.sampled_from(TABLES[1:])), "p": st.sampled_from([0.0, 0.2]), "numbered": st.booleans(),
        "eps": st.sampled_from([1e-2, 1e-5]), "backend": st.sampled_from(BACKENDS), "seed": st.integers(0, 2**31),
    }))  # fmt: skip
    def holds(call):
        torch.manual_seed(call["seed"])
        batch, length = call["rows"]
        ids, tensors = case(batch * length, call["n_cols"], device, types=call["types"], period=length)
        tensors = [None if n in call["absent"] else t.to(d) for n, t, d in zip(TABLES, tensors, call["dtypes"])]
        ids = [ids[0], *(None if t is None else i for i, t in zip(ids[1:], tensors[1:]))]
        numbers = torch.randint(0, 2**31, (batch * length,), device=device) if call["numbered"] else None
        hold(call["backend"], ids, tensors, call["p"], call["eps"], numbers)

    holds()


# ------------------------------------------------------------------------------------------------ the reference


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_reference_is_its_own_gradient(device, p):
    """Formulas against autograd of the reference's forward, in float64."""
    ids, tensors = case(12, 7, torch.device("cpu"), torch.float64, period=4)
    tensors = [t.requires_grad_() for t in tensors]
    arguments = (ids[0], tensors[0], ids[1], tensors[1], ids[2], *tensors[2:])
    mask = (None, torch.tensor([1, 2]) if p else None, p)
    out, mean, rstd = op.reference.forward(*arguments, *mask, 1e-5, FP32)
    dout = torch.randn(12, 7, dtype=torch.float64)
    word, position, *expected = torch.autograd.grad(out, tensors, dout)
    dz, *found = op.reference.backward(dout, *arguments, mean, rstd, *mask, *(True,) * 4)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(table_gradient(dz, ids[0], len(word)), word)
    torch.testing.assert_close(table_gradient(dz.view(3, 4, 7).sum(0), ids[1], len(position)), position)
