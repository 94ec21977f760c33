"""Any call of attention's forward by wgmma and TMA, as hypothesis draws them."""

from __future__ import annotations

import dataclasses

import host_build
import pytest
import torch

pytest.importorskip("triton", reason="the cases are those of the Triton kernels")
pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops.attention_cases import Case, check_forward
from ops.test_attention_cuda_any_call import cases

from fasttx.ops.attention import cuda as attention

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
HEADS = st.sampled_from([8, 32, 40, 64, 72, 96, 128])


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    case=cases(), dim=HEADS, dim_v=HEADS, factor=st.sampled_from([1, 3]), multiprocessors=st.sampled_from([1, 2, 132])
)
def test_any_combination(
    plain, device: torch.device, case: Case, dim: int, dim_v: int, factor: int, multiprocessors: int
) -> None:
    """Up to 420 keys: four blocks, more than the two stages of large heads."""
    lengths = tuple((m * factor, n * factor) for m, n in case.lengths)
    seqused = tuple(n * factor for n in case.seqused)
    case = dataclasses.replace(case, dim=dim, dim_v=dim_v, aligned=True, sq=case.sq * factor)
    case = dataclasses.replace(case, sk=case.sk * factor, lengths=lengths, seqused=seqused)
    if lengths and 0 in (max(m for m, _ in lengths), max(n for _, n in lengths)):
        return  # it does not take tensors without elements
    if case.mask:
        case = dataclasses.replace(case, dropout_p=0.0)
    plain.set_device(90, multiprocessors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "FORM", 90)
        check_forward(attention.attention_fwd, case, device)
