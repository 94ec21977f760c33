"""Any call of attention's backward in CUDA C++, as hypothesis draws them."""

from __future__ import annotations

import dataclasses

import host_build
import pytest
import torch
from ops.attention_cases import Case

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops.test_attention_any_call import cases
from test_attention_backward import ARCHS, BF16, check

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), factor=st.sampled_from([1, 3]), wide=st.booleans(), arch=st.sampled_from(ARCHS))
def test_any_combination(plain, device: torch.device, case: Case, factor: int, wide: bool, arch: int) -> None:
    """Up to 210 keys: two tiles; and heads so wide that dq has a kernel of its own."""
    case = dataclasses.replace(case, sk=case.sk * factor, seqused=tuple(n * factor for n in case.seqused))
    if case.dtype == torch.float32:
        case = dataclasses.replace(case, dtype=BF16)
    if wide:
        case = dataclasses.replace(case, dim=case.dim + 100, dim_v=case.dim_v + 90)
    if case.varlen and (max(n for n, _ in case.lengths) == 0 or max(n for _, n in case.lengths) == 0):
        return
    plain.set_device(arch)
    check(case, device)
