"""The gradient of an additive bias by the Triton kernels: every form of the bias, and how the sums are shared out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from ops.attention_cases import SMALL, Case, check, make_inputs, run
from ops.test_attention_kernels import BF16, PACKED, use_tile

from fasttx.kernels import attention_bwd_dbias

BATCH, HEADS, ROWS, KEYS = 3, 2, 40, 70


@pytest.fixture(params=[1, 20, 512])
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One program for all that read a tile of the bias; several that share them; one for each reader."""
    monkeypatch.setattr(attention_bwd_dbias, "PROGRAMS", request.param)
    return int(request.param)


def shape(broadcast: str, batch: int = BATCH, rows: int = ROWS, keys: int = KEYS) -> tuple[int, ...]:
    """The shape of a bias that has one element in the dims named, of "b", "h", "m" and "n"."""
    full = dict(b=batch, h=HEADS, m=rows, n=keys)
    return tuple(1 if dim in broadcast else size for dim, size in full.items())


@pytest.mark.parametrize(
    "broadcast",
    ["", "b", "bhm", *(pytest.param(b, marks=pytest.mark.slow) for b in ("h", "bh", "m", "bm", "hm", "n", "bhmn"))],
)
def test_one_element_for_many_scores(broadcast: str, programs: int, device: Any, monkeypatch: Any) -> None:
    use_tile(monkeypatch, SMALL[0])
    case = Case(ROWS, KEYS, BATCH, HEADS, heads_k=1, dropout_p=0.2 if "b" in broadcast else 0.0)
    check(case, device, shape(broadcast))


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (9, 3)])
@pytest.mark.parametrize("broadcast", ["b", "bhm"])
def test_packed(broadcast: str, window: tuple[int, int], programs: int, device: Any, monkeypatch: Any) -> None:
    """Indexed within each sequence; their lengths differ, some have no token."""
    use_tile(monkeypatch, SMALL[0])
    case = Case(lengths=PACKED, heads=HEADS, window=window, dropout_p=0.2)
    check(case, device, shape(broadcast, len(PACKED), *(max(n) for n in zip(*PACKED, strict=True))))


@pytest.mark.parametrize("window", [(-1, -1), (20, 1)])
@pytest.mark.parametrize("broadcast", ["b", "bm"])
def test_keys_that_are_not_used(broadcast: str, window: tuple[int, int], device: Any, monkeypatch: Any) -> None:
    use_tile(monkeypatch, SMALL[0])
    case = Case(ROWS, KEYS, BATCH, HEADS, heads_k=HEADS, seqused=(70, 0, 33), window=window)
    check(case, device, shape(broadcast))


@pytest.mark.parametrize("expanded", ["m", "bhm", "bh"])
def test_rows_that_are_one_by_their_strides_have_a_gradient_each(expanded: str, device: Any, monkeypatch: Any) -> None:
    """Of a bias that the caller expanded: its sizes are whole, and autograd adds up what it shares."""
    use_tile(monkeypatch, SMALL[0])
    q, k, v, dout, args = make_inputs(Case(ROWS, KEYS, BATCH, HEADS, heads_k=HEADS), device)
    bias = torch.randn(shape(expanded), device=device).to(q.dtype).expand(shape(""))
    found, wanted = (run(q, k, v, dout, (x, *args[1:]), True) for x in (bias, bias.contiguous()))
    for got, same in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, same)


@pytest.mark.parametrize("length", [70, 150])
def test_default_tiles(length: int, device: Any) -> None:
    """One key block, whose dq, dk and dv take no delta from memory; and two."""
    check(
        Case(length, length, 2, HEADS, heads_k=HEADS, dtype=BF16, dim=64, dim_v=64), device, (1, HEADS, length, length)
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_bits_do_not_vary_and_the_others_do_not_depend_on_it(deterministic: bool, device: Any) -> None:
    case = Case(40, 60, BATCH, HEADS, heads_k=HEADS, dropout_p=0.2, deterministic=deterministic)
    q, k, v, dout, args = make_inputs(case, device)
    bias = torch.randn(1, HEADS, 40, 60, device=device)
    first, again = (run(q, k, v, dout, (bias, *args[1:]), deterministic) for _ in range(2))
    assert len(first) == 6 and all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_padding_that_nobody_reads_is_zero(device: Any) -> None:
    """Of a packed batch whose bias is larger than the longest sequence."""
    q, k, v, dout, args = make_inputs(Case(lengths=((9, 7), (3, 12)), heads=HEADS), device)
    args = (torch.randn(1, HEADS, 40, 40, device=device).to(q.dtype), *args[1:5], 40, 40, *args[7:])
    dbias = run(q, k, v, dout, args, False)[5]
    read = torch.zeros(40, 40, dtype=torch.bool, device=device)
    read[:9, :7] = read[:3, :12] = True
    assert not bool(dbias[:, :, ~read].any()) and bool((dbias[:, :, read] != 0).all())
