"""Any call of the attention kernels, as hypothesis draws them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ops.attention_cases import SMALL, Case, check
from ops.test_attention_kernels import BF16, F16, F32, MASKS, use_tile

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

lengths = st.integers(0, 50)
windows = st.one_of(st.just(-1), st.integers(0, 40))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    heads_k = draw(st.sampled_from([1, 2]))
    packed = draw(st.booleans())
    batch = draw(st.integers(1, 3))
    case = Case(
        draw(st.integers(1, 50)),
        draw(st.integers(1, 70)),
        batch,
        heads_k * draw(st.sampled_from([1, 2])),
        heads_k,
        draw(st.integers(1, 40)),
        draw(st.integers(1, 40)),
        draw(st.sampled_from([F32, F16, BF16])),
        lengths=tuple((draw(lengths), draw(lengths)) for _ in range(batch)) if packed else (),
        mask=draw(st.sampled_from(["", *MASKS])),
        window=(draw(windows), draw(windows)),
        dropout_p=draw(st.sampled_from([0.0, 0.25])),
        deterministic=draw(st.booleans()),
    )
    if not packed and draw(st.booleans()):
        case = dataclasses.replace(case, seqused=tuple(draw(st.integers(0, case.sk)) for _ in range(batch)))
    return case


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), transposed=st.booleans())
def test_any_combination(device: torch.device, monkeypatch: pytest.MonkeyPatch, case: Case, transposed: bool) -> None:
    use_tile(monkeypatch, SMALL[transposed])
    if case.varlen and (max(n for n, _ in case.lengths) == 0 or max(n for _, n in case.lengths) == 0):
        return  # nothing to attend from, or to: the table of ops never launches the first; see test_no_keys_at_all
    check(case, device)
