"""The gradient of an additive bias of any shape, as hypothesis draws it, in Triton and in the compositions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ops.attention_cases import SMALL, Case, check, composition, make_inputs
from ops.test_attention_kernels import BF16, F32, use_tile

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fasttx.kernels import attention_bwd_dbias
from fasttx.ops.attention import composed, reference
from fasttx.ops.attention.cpu import dispatch as cpu
from fasttx.testing import assert_as_accurate

lengths = st.integers(1, 40)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Case, tuple[int, ...]]:
    """A case, and the shape of its bias."""
    heads_k, batch = draw(st.sampled_from([1, 2])), draw(st.integers(1, 3))
    packed = tuple((draw(lengths), draw(lengths)) for _ in range(batch)) if draw(st.booleans()) else ()
    case = Case(
        draw(lengths),
        draw(lengths),
        batch,
        heads_k * draw(st.sampled_from([1, 2])),
        heads_k,
        lengths=packed,
        window=(draw(st.sampled_from([-1, 0, 9])), draw(st.sampled_from([-1, 0, 9]))),
        dropout_p=draw(st.sampled_from([0.0, 0.25])),
    )
    if not packed and draw(st.booleans()):
        case = dataclasses.replace(case, seqused=tuple(draw(st.integers(0, case.sk)) for _ in range(batch)))
    rows, keys = (max(x) for x in zip(*packed, strict=True)) if packed else (case.sq, case.sk)
    full = (batch, case.heads, rows, keys)
    return case, tuple(draw(st.sampled_from([1, n])) for n in full)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls(), programs=st.sampled_from([1, 9, 512]))
def test_any_bias_in_triton(device: torch.device, monkeypatch: pytest.MonkeyPatch, call: tuple, programs: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    use_tile(monkeypatch, SMALL[0])
    monkeypatch.setattr(attention_bwd_dbias, "PROGRAMS", programs)
    check(call[0], device, call[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(call=calls(), dtype=st.sampled_from([F32, BF16]))
def test_any_bias_in_the_compositions(call: tuple[Case, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Dropout of a CPU has a scheme of its own: test_attention_op.py compares that with differences."""
    case = dataclasses.replace(call[0], dtype=dtype, dropout_p=0.0)
    q, k, v, dout, args = make_inputs(case, torch.device("cpu"))
    k, v = k.nan_to_num(), v.nan_to_num()
    args = (torch.randn(call[1]).to(dtype), *args[1:])
    out, lse = composed.forward(q, k, v, *args)
    wanted = reference.backward(dout, q, k, v, out, lse, *args, False, True)
    plain = composed.backward(dout, q, k, v, out, lse, *args, False, True)
    found = cpu.backward(dout, q, k, v, *cpu.forward(q, k, v, *args), *args, False, True)
    assert found.dbias.shape == plain.dbias.shape == call[1] and found.dbias.dtype == plain.dbias.dtype == dtype
    _, sizes = composition(q, k, v, dout, args, torch.float64)
    for name, got in (("composed", plain.dbias), ("cpu", found.dbias)):
        assert_as_accurate(got, plain.dbias, wanted.dbias, name, least=sizes["dbias"])
