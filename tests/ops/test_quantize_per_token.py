"""quantize_per_token: the same integers everywhere, what becomes of rows that hold no numbers, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fasttx.ops.backends import BackendError
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.dispatch import resolve
from fasttx.ops.quantize_per_token.composed import LEAST_ABSMAX
from fasttx.ops.quantize_per_token.op import MAX_COLS, QUANTIZE_PER_TOKEN

op = torch.ops.fasttx.quantize_per_token_fwd
BACKENDS = ["torch", "triton", "cuda", "cpu"]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of inf * 0


def runnable(backend: str, x: Tensor) -> None:
    reason = QUANTIZE_PER_TOKEN.reasons(x)[backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1, 8, 31, 32, 33, 384, 513, 1025, 1032, 4097])
def test_integers_and_scales(device: torch.device, n_cols: int, dtype: torch.dtype, backend: str) -> None:
    """Over many magnitudes: an inverse or a product rounded otherwise shows in some integer."""
    n_rows = max(3, 4000 // n_cols)
    spread = torch.logspace(-3, 3, n_rows, device=device)[:, None]
    x = (torch.randn(n_rows, n_cols, device=device) * spread).to(dtype)
    runnable(backend, x)
    for scale in (None, torch.tensor(0.03, device=device)):
        x_q, x_scale = op(x, scale, backend)
        want_q, want_scale = QUANTIZE_PER_TOKEN.fwd.reference(x, scale)
        assert torch.equal(x_q.double(), want_q)
        assert torch.equal(x_scale, want_scale.float())
        if scale is None:
            assert bool((x_q.abs().amax(-1) == 127).all())
            error = (x_q.double() * want_scale[:, None] - x.double()).abs().amax(-1)
            assert bool((error <= want_scale * 0.5001).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_even_integer(device: torch.device, backend: str) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -127.0]], device=device)
    runnable(backend, x)
    want = torch.tensor([[127, 0, 2, 2, 0, -2, -2, 126, -127]], dtype=torch.int8, device=device)
    for scale in (None, torch.ones((), device=device)):
        x_q, x_scale = op(x, scale, backend)
        assert torch.equal(x_q, want) and x_scale.tolist() == [1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_numbers_are_nan_and_touch_no_other(device: torch.device, backend: str) -> None:
    x = torch.randn(7, 50, device=device)
    runnable(backend, x)
    alone = op(x, None, backend)
    x[1, 3], x[3, 49], x[5, 0] = math.nan, math.inf, -math.inf
    x[4], x[6] = 0.0, 1e-40
    x_q, x_scale = op(x, None, backend)
    assert x_scale.isnan().tolist() == [False, True, False, True, False, True, False]
    assert not x_q[[1, 3, 4, 5, 6]].any()
    assert x_scale[4].item() == x_scale[6].item() == torch.tensor(LEAST_ABSMAX / 127).item() > 0.0
    assert torch.equal(x_q[[0, 2]], alone[0][[0, 2]]) and torch.equal(x_scale[[0, 2]], alone[1][[0, 2]])
    static_q, static_scale = op(x, torch.tensor(0.02, device=device), backend)
    assert torch.equal(static_scale.isnan(), x_scale.isnan()) and not static_q[[1, 3, 5]].any()
    assert static_q[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_extremes_of_float32(device: torch.device, backend: str) -> None:
    x = torch.tensor([[3.4e38, -1.7e38, 0.0], [1e-35, -1e-35, 6e-36], [-3e-45, 0.0, 1e-45]], device=device)
    runnable(backend, x)
    x_q, x_scale = op(x, None, backend)
    assert x_q.tolist() == [[127, -64, 0], [127, -127, 76], [0, 0, 0]]
    assert bool(x_scale.isfinite().all()) and bool((x_scale > 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_given_scale_saturates_and_must_be_invertible(device: torch.device, backend: str) -> None:
    x = torch.tensor([[1.0, -1.0, 1e30, -1e30, 0.004]], device=device)
    runnable(backend, x)
    x_q, x_scale = op(x, torch.tensor(0.01, device=device), backend)
    assert x_q.tolist() == [[100, -100, 127, -127, 0]] and x_scale.tolist() == pytest.approx([0.01])
    x_q, x_scale = op(x, torch.tensor(1e-40, device=device), backend)  # its inverse is infinite
    assert not x_q.any() and x_scale.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(device: torch.device, backend: str) -> None:
    base = torch.randn(3, 70, 40, device=device)
    runnable(backend, base)
    for x in (base.transpose(1, 2), base[:, 3:50, 1:], base[..., ::2], base[0, 0], base[:, :, :1]):
        x_q, x_scale = op(x, None, backend)
        want_q, want_scale = QUANTIZE_PER_TOKEN.fwd.reference(x, None)
        assert torch.equal(x_q.double(), want_q) and torch.equal(x_scale, want_scale.float())
        assert x_q.is_contiguous() and x_scale.shape == x.shape[:-1]


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("n_cols", [101, 104])
@pytest.mark.parametrize("lead", [64, 67])  # rows of 104 begin at multiples of 8 bytes, and between them
def test_nothing_is_written_outside(device: torch.device, backend: str, n_cols: int, lead: int) -> None:
    runnable(backend, torch.empty(1, device=device))
    impl = next(i for i in QUANTIZE_PER_TOKEN.impls if i.backend == backend)
    quantize_per_token_fwd = resolve(impl.fwd)
    n_rows = 4096 // 128 + 3  # ragged in both directions
    x = torch.randn(n_rows, n_cols, device=device)
    room_q = torch.full((n_rows * n_cols + lead + 64,), 99, dtype=torch.int8, device=device)
    room_s = torch.full((n_rows + 128,), -7.0, device=device)
    x_q, x_scale = room_q[lead:-64].view(n_rows, n_cols), room_s[64:-64]
    quantize_per_token_fwd(x_q, x_scale, x, None)
    want_q, want_scale = QUANTIZE_PER_TOKEN.fwd.reference(x, None)
    assert torch.equal(x_q.double(), want_q) and torch.equal(x_scale, want_scale.float())
    assert bool((room_q[:lead] == 99).all()) and bool((room_q[-64:] == 99).all())
    assert bool((room_s[:64] == -7).all()) and bool((room_s[-64:] == -7).all())


def test_tiles() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from fasttx.kernels import quantize_per_token as kernels
    from fasttx.kernels import row_scale

    assert kernels.MAX_COLS == MAX_COLS and row_scale.LEAST_ABSMAX.value == LEAST_ABSMAX
    for n_cols in (1, 32, 33, 384, 768, 4096, 4097, MAX_COLS):
        tile = kernels.config(n_cols)
        assert tile.block_n >= n_cols and tile.rows * tile.block_n == tile.num_warps * 32 * 32


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_rows_too_long_for_the_kernel(device: torch.device, backend: str) -> None:
    x = torch.randn(2, MAX_COLS + 1, device=device)
    with pytest.raises(BackendError, match=f"rows of at most {MAX_COLS} columns"):
        op(x, None, backend)
    assert op(x, None, "torch")[0].abs().max() == 127


@pytest.mark.parametrize(
    "x, scale, message",
    [
        (torch.ones(()), None, r"x: got torch.float32 \(\); allowed is .* \(..., n_cols\)"),
        (torch.ones(2, dtype=torch.float64), None, "x: got torch.float64 .*; allowed is "),
        (torch.ones(2), torch.ones(1), r"scale: got torch.float32 \(1,\); allowed is float32 \(\)"),
        (torch.ones(2), torch.ones((), dtype=torch.float16), "scale: got .*; allowed is float32"),
        (torch.ones(2), torch.zeros(()), "scale: got 0.0; allowed is a positive, finite number"),
        (torch.ones(2), torch.tensor(math.inf), "scale: got inf; allowed is a positive, finite number"),
        (torch.ones(2), torch.ones((), device="meta"), "scale: got a tensor on meta; allowed is cpu, where x is"),
    ],
    ids=lambda v: None if isinstance(v, Tensor) else str(v)[:20],
)
def test_refusals(x: Tensor, scale: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QUANTIZE_PER_TOKEN.fwd.check(x, scale)


def test_without_columns(device: torch.device) -> None:
    x_q, x_scale = op(torch.ones(3, 0, device=device), None, "auto")
    assert x_q.shape == (3, 0) and bool((x_scale > 0).all())
