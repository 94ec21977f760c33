"""The op bias_gelu: strides, guard bytes, bitwise determinism, empty batches, and any call at all."""

from __future__ import annotations

import math

import pytest
import torch
from ops.guard_bytes import surrounded
from ops.test_bias_gelu import DTYPES, FP32, NAN, WRITTEN, each_backend, each_written, hold, state_on, tensors_for

from fasttx.kernels import bias_gelu as kernels
from fasttx.ops.bias_gelu import cuda as bias_gelu_cuda

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's: exponentials of infinities


@pytest.mark.parametrize("kernels", [kernels, bias_gelu_cuda], ids=WRITTEN)
@pytest.mark.parametrize("n_cols", [13, 257])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_nothing_outside_of_the_tensors_is_read_or_written(device, kernels, n_cols, p):
    x, dout, bias = (surrounded(shape, NAN, device)[0].normal_() for shape in [(3, n_cols)] * 2 + [(n_cols,)])
    state = state_on(device) if p else None
    inner, buffers = zip(*(surrounded(shape, 7.0, device) for shape in [(3, n_cols)] * 2 + [(n_cols,)]))
    for t in inner:
        t.fill_(NAN)
    kernels.bias_gelu_fwd(inner[0], x, bias, None, state, p, False)
    kernels.bias_gelu_bwd(*inner[1:], dout, x, bias, None, state, p, False, True, True)
    for t, buffer in zip(inner, buffers):
        assert bool(t.isfinite().all()), "an element was not written, or one outside was read"
        assert bool((buffer[:24] == 7.0).all()) and bool((buffer[-24:] == 7.0).all())


@each_backend
def test_strided_and_misaligned_inputs(device, backend):
    base, dout = torch.randn(4, 6, 50, device=device), torch.randn(4, 6, 41, device=device)
    bias = torch.randn(82, device=device)[::2]
    for x in (base[:, :, 3:44], base[..., 1:42], base.transpose(0, 1)[..., :41].transpose(0, 1)):
        hold(backend, x, bias, 0.25, dout=dout)
        hold(backend, x.contiguous(), bias, dout=base[..., 5:46])
    hold(backend, base[:, 0], bias[:1].expand(50), dout=torch.randn(1, device=device).expand(4, 50))
    across = torch.randn(6, 50, 4, device=device).permute(2, 1, 0)
    hold(backend, base.transpose(1, 2), None, 0.25, dout=across)
    hold(backend, base[:1, :1].expand(4, 6, 50), None, dout=base)
    hold(backend, base[0, 0], base[0, 1])  # one row
    # whole runs of 8 columns that begin between multiples of 16 bytes
    between = torch.randn(3 * 288 + 1, device=device)[1:].view(3, 6, 48)
    hold(backend, between[0], between[1, 0], dout=between[2])


@each_written
def test_bitwise_deterministic(device, backend):
    x, bias = tensors_for(19, 300, FP32, device)
    runs = [hold(backend, x, bias, 0.1, dout=x) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@each_backend
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 3)])
def test_empty(device, backend, shape):
    x, bias = torch.empty(shape, device=device), torch.ones(shape[-1], device=device)
    for p in (0.0, 0.5):
        assert bool((hold(backend, x, bias, p)[2] == 0).all())


# ------------------------------------------------------------------------------------------------------ hypothesis


def test_any_call(device):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @st.composite
    def calls(draw):
        dtype = draw(st.sampled_from(DTYPES))
        return {
            "shape": draw(st.lists(st.integers(1, 4), min_size=0, max_size=3)) + [draw(st.integers(1, 70))],
            "gap": draw(st.sampled_from([0, 0, 1, 8])),
            "dtypes": (dtype, draw(st.sampled_from([None, dtype, FP32]))),
            "p": draw(st.sampled_from([0.0, 0.2])),
            "tanh": draw(st.booleans()),
            "numbered": draw(st.booleans()),
            "backend": draw(st.sampled_from([*WRITTEN, "torch"])),
            "seed": draw(st.integers(0, 2**31)),
        }

    @hypothesis.settings(max_examples=40, deadline=None)
    @hypothesis.given(call=calls())
    def holds(call):
        torch.manual_seed(call["seed"])
        *leading, n_cols = call["shape"]
        sizes = [*leading, n_cols + call["gap"]], [n_cols]
        x, bias = (
            None if dtype is None else torch.randn(size, device=device).to(dtype)[..., :n_cols]
            for size, dtype in zip(sizes, call["dtypes"])
        )
        numbers = torch.randint(0, 2**31, (math.prod(leading),), device=device) if call["numbered"] else None
        hold(call["backend"], x, bias, call["p"], call["tanh"], numbers)

    holds()
