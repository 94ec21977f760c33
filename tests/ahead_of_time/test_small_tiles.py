"""The small tiles of tests/ops compile on a GPU in about a second: bf16 by four warps, no spill in any orientation."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("compiles without the interpreter: run with FASTTX_AOT=1, in its own process", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from ahead_of_time.dry_device import dry_device
from ops.attention_cases import quick

from fasttx.kernels import attention, attention_bwd


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mask", ["", "full"])
def test_no_spill(transposed: bool, mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype, tiles = quick(gpu=True)
    for module in (attention, attention_bwd):
        monkeypatch.setattr(module, "config", lambda *args, **kwargs: tiles[transposed])
    assert dtype == torch.bfloat16 and all(tile.num_warps == 4 for tile in tiles)
    q, k, v, out, dout, dq, dk, dv = (torch.empty(2, 70, 1, 32, dtype=dtype, device="meta") for _ in range(8))
    lse = torch.empty(2, 1, 70, device="meta")
    bias = torch.empty(2, 1, 70, 70, dtype=dtype, device="meta") if mask else None
    dbias = torch.empty(2 if mask else 0, 1, 70, 70, dtype=dtype, device="meta")
    call = (bias, None, None, None, None, 70, 70, 0.2, 0.0, -1, -1)
    with dry_device(90) as records:
        attention.attention_fwd(out, lse, q, k, v, *call)
        attention_bwd.attention_bwd(dq, dk, dv, dbias, dout, q, k, v, out, lse, *call, True, bool(mask))
    assert records
    for record in records:
        assert record.spill_bytes == 0 and record.registers < 255, str(record)
