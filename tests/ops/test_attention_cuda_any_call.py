"""Attention's forward in CUDA C++ on any call at all: a property, which needs hypothesis."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

pytest.importorskip("triton", reason="the cases are those of the Triton kernels")
pytest.importorskip("hypothesis", reason="hypothesis is not installed")

import hypothesis
from hypothesis import strategies as st
from ops.attention_cases import Case
from ops.test_attention_cuda_fwd import check, compiled
from ops.test_attention_kernels import BF16, F16, MASKS

__all__ = ["compiled"]  # the fixture, which skips where the kernel cannot run


@st.composite
def cases(draw) -> Case:
    heads_k, packed, batch = draw(st.sampled_from([1, 2])), draw(st.booleans()), draw(st.integers(1, 3))
    lengths, windows = st.integers(0, 140), st.one_of(st.just(-1), st.integers(0, 90))
    case = Case(
        draw(st.integers(1, 140)),
        draw(st.integers(1, 140)),
        batch,
        heads_k * draw(st.sampled_from([1, 2])),
        heads_k,
        draw(st.integers(1, 70)),
        draw(st.sampled_from([1, 8, 17, 64, 130])),
        draw(st.sampled_from([F16, BF16])),
        lengths=tuple((draw(lengths), draw(lengths)) for _ in range(batch)) if packed else (),
        mask=draw(st.sampled_from(["", *MASKS])),
        window=(draw(windows), draw(windows)),
        dropout_p=draw(st.sampled_from([0.0, 0.25, 0.7])),
        aligned=draw(st.booleans()),
    )
    if not packed and draw(st.booleans()):
        case = dataclasses.replace(case, seqused=tuple(draw(st.integers(0, case.sk)) for _ in range(batch)))
    return case


@hypothesis.settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(case=cases())
def test_any_combination(device: torch.device, case: Case) -> None:
    if case.varlen and math.prod(max(column) for column in zip(*case.lengths, strict=True)) == 0:
        return  # nothing to attend from, or to: see test_attention_cuda_fwd.py, test_no_keys_at_all
    check(device, case)
