"""int8_linear: the integer product is exact whatever computes it, and the epilogue keeps the accuracy rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.int8_linear import composed
from fasttx.ops.int8_linear.op import INT8_LINEAR, MAX_IN_FEATURES
from fasttx.testing import assert_as_accurate

op = torch.ops.fasttx.int8_linear_fwd
BACKENDS = ["torch", "triton", "cuda", "cpu"]


def runnable(backend: str, device: torch.device) -> None:
    x = torch.ones(2, 2, dtype=torch.int8, device=device)
    reason = INT8_LINEAR.reasons(x, x)[backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def integers(*shape: int, device: torch.device) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, device=device)


def accumulators(x_q: Tensor, w_q: Tensor, backend: str) -> Tensor:
    """The sums, as float32: scales of 1 show them as they are."""
    ones = (torch.ones(t.shape[0], device=x_q.device) for t in (x_q, w_q))
    return op(x_q, w_q, *ones, None, None, "none", torch.float32, backend)


def exact(x_q: Tensor, w_q: Tensor) -> Tensor:
    """int64 sums, rounded to float32 once, as an int32 is."""
    return (x_q.long().cpu() @ w_q.long().t().cpu()).float().to(x_q.device)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "n_rows, n_in, n_out",
    [
        (1, 1, 1),
        (2, 31, 65),
        (63, 32, 64),
        (65, 33, 63),
        (64, 127, 3),
        (3, 128, 129),
        (5, 129, 64),
        (17, 48, 70),
        (4, 1024, 9),
        (4, 1025, 9),
        (3, 2100, 8),
    ],
)
def test_the_product_is_exact(device: torch.device, n_rows: int, n_in: int, n_out: int, backend: str) -> None:
    runnable(backend, device)
    x_q, w_q = integers(n_rows, n_in, device=device), integers(n_out, n_in, device=device)
    assert torch.equal(accumulators(x_q, w_q, backend), exact(x_q, w_q))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_in", [1024, 1025, 5000])
@pytest.mark.parametrize("value", [127, -128])
def test_the_product_is_exact_at_the_extremes(device: torch.device, n_in: int, value: int, backend: str) -> None:
    """Up to 8e7: sums that float32 does not hold, one product added or subtracted."""
    runnable(backend, device)
    x_q = torch.full((3, n_in), value, dtype=torch.int8, device=device)
    w_q = torch.full((2, n_in), -128, dtype=torch.int8, device=device)
    x_q[1, -1], x_q[2, 0], w_q[1] = 1, -1, 127
    assert torch.equal(accumulators(x_q, w_q, backend), exact(x_q, w_q))


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_every_way_of_the_composition_is_exact(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    x_q, w_q = integers(9, 2050, device=torch.device("cpu")), integers(7, 2050, device=torch.device("cpu"))
    x_q[0], w_q[0] = 127, 127
    x_q[0, 0] = 126  # an odd sum above 2**24, which float32 does not hold
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for int8_dot_products in (False, True):
            monkeypatch.setattr(composed, "_cpu_has_int8_dot_products", lambda yes=int8_dot_products: yes)
            for n_in in (2050, 900):
                want = x_q[:, :n_in].long() @ w_q[:, :n_in].long().t()
                assert torch.equal(composed.product(x_q[:, :n_in], w_q[:, :n_in]).long(), want)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("n_rows, n_in, n_out", [(1, 5, 3), (17, 8, 16), (16, 8, 9), (40, 12, 8)])
def test_padding_for_cuda(n_rows: int, n_in: int, n_out: int) -> None:
    x_q, w_q = integers(n_rows, n_in, device=torch.device("cpu")), integers(n_out, n_in, device=torch.device("cpu"))
    x_padded, w_padded = composed._as_cuda_wants(x_q, w_q)
    assert x_padded.shape[0] > 16 and x_padded.shape[1] % 8 == w_padded.shape[0] % 8 == 0
    found = (x_padded.long() @ w_padded.long().t())[:n_rows, :n_out]
    assert torch.equal(found, x_q.long() @ w_q.long().t())


def test_autocast_does_not_round_the_product() -> None:
    x_q, w_q = integers(9, 700, device=torch.device("cpu")), integers(7, 700, device=torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(accumulators(x_q, w_q, "torch"), exact(x_q, w_q))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("parts", ["", "bias", "residual", "bias residual"])
def test_epilogue(device: torch.device, parts: str, activation: str, dtype: torch.dtype, backend: str) -> None:
    runnable(backend, device)
    n_rows, n_in, n_out = 67, 80, 66
    x_q, w_q = integers(n_rows, n_in, device=device), integers(n_out, n_in, device=device)
    x_scale, w_scale = (torch.rand(n, device=device) / 150 for n in (n_rows, n_out))
    bias = torch.randn(n_out, device=device).to(dtype) if "bias" in parts else None
    residual = torch.randn(n_rows, n_out, device=device).to(dtype) if "residual" in parts else None
    arguments = (x_q, w_q, x_scale, w_scale, bias, residual, activation, dtype)
    out = op(*arguments, backend)
    assert_as_accurate(out, INT8_LINEAR.fwd.torch(*arguments), INT8_LINEAR.fwd.reference(*arguments))
    y = torch.nn.functional.linear(x_q.double() * x_scale[:, None], w_q.double() * w_scale[:, None])
    y = y if bias is None else y + bias
    if activation != "none":
        y = torch.nn.functional.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")
    y = y if residual is None else y + residual
    torch.testing.assert_close(INT8_LINEAR.fwd.reference(*arguments), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_activations_far_out(device: torch.device, activation: str, backend: str) -> None:
    """Where an exponential overflows or underflows; -0 and 0 are 0."""
    runnable(backend, device)
    y = torch.tensor([-1e30, -90.0, -9.0, -3.0, 0.0, 1e-30, 3.0, 9.0, 90.0, 1e12], device=device)
    x_q, w_q = (torch.zeros(n, 1, dtype=torch.int8, device=device) for n in (1, len(y)))
    arguments = (x_q, w_q, torch.ones(1, device=device), torch.ones_like(y), y, None, activation, torch.float32)
    out, want = op(*arguments, backend)[0], INT8_LINEAR.fwd.reference(*arguments)[0]
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_whose_scale_is_nan_is_nan_alone(device: torch.device, backend: str) -> None:
    runnable(backend, device)
    x_scale = torch.ones(5, device=device)
    x_scale[2] = math.nan
    x_q, w_q = integers(5, 33, device=device), integers(6, 33, device=device)
    x_q[2] = 0
    out = op(x_q, w_q, x_scale, torch.ones(6, device=device), None, None, "gelu", torch.float32, backend)
    assert out.isnan().all(1).tolist() == out.isnan().any(1).tolist() == [False, False, True, False, False]


def tiles() -> list[Any]:
    kernels = pytest.importorskip("fasttx.kernels.int8_linear", reason="triton is not installed")
    return sorted({tile for row in kernels.TABLE.values() for tile in row} | {kernels.UNALIGNED})


@pytest.mark.parametrize("group", [2, 8])
def test_every_tile_and_nothing_outside(device: torch.device, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged rows, columns and k, several blocks of each, in every order of programs; outputs between guards."""
    runnable("triton", device)
    from fasttx.kernels import int8_linear as kernels

    n_rows, n_in, n_out = 131, 150, 259
    x_q, w_q = integers(n_rows, n_in, device=device), integers(n_out, n_in, device=device)
    ones = torch.ones(n_rows, device=device), torch.ones(n_out, device=device)
    want = exact(x_q, w_q)
    monkeypatch.setattr(kernels, "GROUP_M", group)
    for tile in tiles():
        monkeypatch.setattr(kernels, "config", lambda *_, tile=tile: tile)
        room = torch.full((n_rows * n_out + 512,), -7.5, device=device)
        room[256:-256] = math.nan
        out = room[256:-256].view(n_rows, n_out)
        kernels.int8_linear_fwd(out, x_q, w_q, *ones, None, None, "none", torch.float32)
        assert torch.equal(out, want), tile
        assert bool((room[:256] == -7.5).all()) and bool((room[-256:] == -7.5).all()), tile


def test_tiles_of_shapes() -> None:
    kernels = pytest.importorskip("fasttx.kernels.int8_linear", reason="triton is not installed")
    for arch in (80, 90, 100, 120):
        table = kernels.TABLE[{120: 80}.get(arch, arch)]
        assert kernels.config(16384, 768, 768, arch) == table[0]
        assert kernels.config(1, 768, 768, arch) == table[-1]
        assert kernels.config(16384, 768, 700, arch) == kernels.UNALIGNED
        for tile in table:
            assert tile.block_k >= 32 and (tile.block_m + tile.block_n) * tile.block_k * tile.num_stages <= 163840


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(device: torch.device, backend: str) -> None:
    runnable(backend, device)
    x_q, w_q = integers(50, 9, device=device).t(), integers(40, 123, device=device)[1:21, 3:53]
    residual = torch.randn(20, 9, device=device).t()
    x_scale = torch.rand(18, device=device)[::2]
    arguments = (
        x_q,
        w_q,
        x_scale,
        torch.rand(40, device=device)[::2],
        torch.randn(60, device=device)[::3],
        residual,
        "none",
        torch.float32,
    )
    out = op(*arguments, backend)
    assert_as_accurate(out, INT8_LINEAR.fwd.torch(*arguments), INT8_LINEAR.fwd.reference(*arguments))
    assert out.is_contiguous()


def given(**changes: Any) -> tuple[Any, ...]:
    arguments = {
        "x_q": torch.ones(2, 3, dtype=torch.int8),
        "w_q": torch.ones(4, 3, dtype=torch.int8),
        "x_scale": torch.ones(2),
        "w_scale": torch.ones(4),
        "bias": None,
        "residual": None,
        "activation": "none",
        "out_dtype": torch.float32,
    }
    return (*(arguments | changes).values(),)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x_q": torch.ones(3, dtype=torch.int8)}, r"x_q: got .*\(3,\); allowed is int8 \(n_rows, in_features\)"),
        ({"x_q": torch.ones(2, 3)}, "x_q: got .*; allowed is int8"),
        ({"w_q": torch.ones(4, 2, dtype=torch.int8)}, r"w_q: got .*; allowed is int8 \(out_features, 3\)"),
        ({"w_q": torch.ones(0, 3, dtype=torch.int8)}, "of at least one row"),
        ({"x_scale": torch.ones(3)}, r"x_scale: got .*; allowed is float32 \(2,\)"),
        ({"w_scale": torch.ones(4, dtype=torch.float16)}, r"w_scale: got torch.float16 .*; allowed is float32 \(4,\)"),
        ({"bias": torch.ones(3)}, r"bias: got .*; allowed is .* \(4,\)"),
        ({"bias": torch.ones(4, dtype=torch.float64)}, "bias: got torch.float64 .*; allowed is "),
        ({"residual": torch.ones(4, 2)}, r"residual: got .*; allowed is .* \(2, 4\)"),
        ({"bias": torch.ones(4, device="meta")}, "bias: got a tensor on meta; allowed is cpu, where x_q is"),
        ({"activation": "relu"}, "activation: got 'relu'; allowed is one of 'none', 'gelu', 'gelu_tanh'"),
        ({"out_dtype": torch.int8}, "out_dtype: got .*; allowed is"),
        (
            {
                "x_q": torch.ones(2, 1, dtype=torch.int8).expand(2, MAX_IN_FEATURES + 1),
                "w_q": torch.ones(4, 1, dtype=torch.int8).expand(4, MAX_IN_FEATURES + 1),
            },
            f"got {MAX_IN_FEATURES + 1} in_features; allowed is at most {MAX_IN_FEATURES}",
        ),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        INT8_LINEAR.fwd.check(*given(**changes))
    if not any(isinstance(t, Tensor) and t.is_meta for t in changes.values()):  # those would go to the fake
        with pytest.raises(ValueError, match=message):
            op(*given(**changes), "auto")


def test_cost() -> None:
    assert INT8_LINEAR.fwd.cost(*given()) == ((2 * 3 + 3) * 8, (6 + 12) + 4 * (2 + 4) + 4 * 8)
