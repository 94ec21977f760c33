"""The op dropout_add_layer_norm: strides, guard bytes, bitwise determinism, empty batches, and any call at all."""

from __future__ import annotations

import math

import pytest
import torch
from ops.guard_bytes import surrounded
from ops.test_dropout_add_layer_norm import BACKENDS, DTYPES, FP32, NAN, WRITTEN, hold, state_on, tensors_for

from fasttx.kernels import dropout_add_layer_norm as kernels
from fasttx.ops.dropout_add_layer_norm import cuda as dropout_add_layer_norm_cuda

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor


@pytest.mark.parametrize("kernels", [kernels, dropout_add_layer_norm_cuda], ids=WRITTEN)
@pytest.mark.parametrize("n_cols", [13, 768, 1025])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_nothing_outside_of_the_tensors_is_read_or_written(device, kernels, n_cols, p):
    x, residual, dout, weight, bias = (
        surrounded(shape, NAN, device)[0].normal_() for shape in [(3, n_cols)] * 3 + [(n_cols,)] * 2
    )
    state = state_on(device) if p else None
    shapes = [(3, n_cols), (3,), (3,), (3, n_cols), (3, n_cols), (n_cols,), (n_cols,)]
    inner, buffers = zip(*(surrounded(shape, 7.0, device) for shape in shapes))
    for t in inner:
        t.fill_(NAN)
    kernels.dropout_add_layer_norm_fwd(*inner[:3], x, residual, weight, bias, None, state, p, 1e-5, FP32)
    needs = (True,) * 4
    kernels.dropout_add_layer_norm_bwd(*inner[3:], dout, x, residual, weight, bias, *inner[1:3], None, state, p, *needs)
    for t, buffer in zip(inner, buffers):
        assert bool(t.isfinite().all()), "an element was not written, or one outside was read"
        assert bool((buffer[:24] == 7.0).all()) and bool((buffer[-24:] == 7.0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_misaligned_inputs(device, backend):
    base, dout = torch.randn(4, 6, 50, device=device), torch.randn(4, 6, 41, device=device)
    weight = torch.randn(82, device=device)[::2]
    for x in (base[:, :, 3:44], base[..., 1:42], base.transpose(0, 1)[..., :41].transpose(0, 1)):
        hold(backend, x, x.flip(0), weight, weight, 0.25, dout=dout)
        hold(backend, x.contiguous(), x, None, None, dout=dout)
    hold(backend, base[:, 0], base[:, 1], dout=torch.randn(1, device=device).expand(4, 50))  # the first tokens alone
    hold(
        backend,
        base.transpose(1, 2),
        None,
        None,
        None,
        0.25,
        dout=torch.randn(6, 50, 4, device=device).permute(2, 1, 0),
    )
    hold(backend, base[:1, :1].expand(4, 6, 50), base, dout=base)
    # whole runs of 8 columns that begin between multiples of 16 bytes
    between = torch.randn(3 * 288 + 1, device=device)[1:].view(3, 6, 48)
    hold(backend, between[0], between[1], between[2, 0], between[2, 1], dout=between[2])


@pytest.mark.parametrize("backend", WRITTEN)
def test_bitwise_deterministic(device, backend):
    x, residual, weight, bias = tensors_for(71, 384, FP32, device)
    runs = [hold(backend, x, residual, weight, bias, 0.1, dout=residual) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 3)])
def test_empty(device, backend, shape):
    x, weight = torch.empty(shape, device=device), torch.ones(shape[-1], device=device)
    for p in (0.0, 0.5):
        dweight = hold(backend, x, x, weight, weight, p)[3]
        assert bool((dweight == 0).all())


# ------------------------------------------------------------------------------------------------------ hypothesis


def test_any_call(device):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @st.composite
    def calls(draw):
        dtypes = st.sampled_from(DTYPES)
        return {
            "shape": draw(st.lists(st.integers(1, 4), min_size=0, max_size=3)) + [draw(st.integers(3, 70))],
            "gap": draw(st.sampled_from([0, 0, 1, 8])),
            "dtypes": draw(st.tuples(dtypes, st.none() | dtypes, st.none() | dtypes, st.none() | dtypes)),
            "p": draw(st.sampled_from([0.0, 0.2])),
            "numbered": draw(st.booleans()),
            "eps": draw(st.sampled_from([1e-2, 1e-5])),
            "backend": draw(st.sampled_from(BACKENDS)),
            "seed": draw(st.integers(0, 2**31)),
        }

    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(call=calls())
    def holds(call):
        torch.manual_seed(call["seed"])
        *leading, n_cols = call["shape"]
        sizes = [[*leading, n_cols + call["gap"]]] * 2 + [[n_cols]] * 2
        x, residual, weight, bias = (
            None if dtype is None else torch.randn(size, device=device).to(dtype)[..., :n_cols]
            for size, dtype in zip(sizes, call["dtypes"])
        )
        numbers = torch.randint(0, 2**31, (math.prod(leading),), device=device) if call["numbered"] else None
        hold(call["backend"], x, residual, weight, bias, call["p"], call["eps"], numbers)

    holds()
