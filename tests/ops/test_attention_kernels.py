"""The Triton attention kernels, called directly, against float64 and against PyTorch's operators in the same dtype."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from ops.attention_cases import SMALL, Case, check, guarded, make_inputs, run

from fasttx.kernels import attention, attention_bwd
from fasttx.kernels.attention_config import OTHER_TILES, TABLE, TABLE_FP32, Config, config

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
PACKED = ((33, 34), (0, 5), (17, 64), (5, 0), (20, 3))


@pytest.fixture(params=["atomic", "deterministic-transposed"])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Tiles of 32 x 32, so that short sequences have many of them; yields whether the backward is to be deterministic.

    Either orientation goes with one way to dq here; test_any_combination mixes them.
    """
    use_tile(monkeypatch, SMALL[request.param != "atomic"])
    return bool(request.param != "atomic")


def use_tile(monkeypatch: pytest.MonkeyPatch, tile: Config) -> None:
    for module in (attention, attention_bwd):
        monkeypatch.setattr(module, "config", lambda *args, **kwargs: tile)


# 31, 32 and 33 stand around one tile, 40 x 70 has a ragged last one both ways; 1 is the least
@pytest.mark.parametrize(("sq", "sk"), [(1, 1), (31, 33), (32, 32), (33, 31), (40, 70)])
def test_tile_boundaries(device: torch.device, sq: int, sk: int, small_tiles: bool) -> None:
    check(Case(sq, sk, batch=1, deterministic=small_tiles), device)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(("sk", "deterministic"), [(100, False), (130, False), (130, True)])  # one key block, two, two
def test_default_tiles(device: torch.device, dtype: torch.dtype, deterministic: bool, sk: int) -> None:
    case = Case(130, sk, 1, dtype=dtype, dim=64, dim_v=64, dropout_p=0.1, deterministic=deterministic)
    check(case if dtype != F32 else dataclasses.replace(case, sq=70, sk=sk - 70, dim=32, dim_v=32), device)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("tile", [t for tiles in OTHER_TILES.values() for t in tiles], ids=str)
def test_other_tiles(device: torch.device, tile: Config, deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that only a measurement asks for give the same: two blocks each way, the last ones ragged, packed too."""
    use_tile(monkeypatch, tile)
    check(Case(70, 100, 1, dtype=BF16, dim=64, dim_v=64, dropout_p=0.1, deterministic=deterministic), device)
    check(Case(lengths=((70, 90), (3, 65)), dtype=F16, dropout_p=0.1, deterministic=deterministic), device)


@pytest.mark.parametrize(("dim", "dim_v"), [(1, 1), (20, 40), (64, 16), (80, 80), (128, 128), (256, 200)])
def test_head_dims(device: torch.device, dim: int, dim_v: int) -> None:
    check(Case(20, 30, 1, dim=dim, dim_v=dim_v, dtype=BF16 if dim < 100 else F32), device)


MASKS = [
    "key-bool",
    "key-add",
    "key-fp32",
    "key-lowest",
    "head_key-bool",
    "full-bool",
    "full-add",
    "full-lowest",
    "shared-fp32",
    "row-bool",
    "row-add",
    "transposed-bool",
    "transposed-fp32",
]


@pytest.mark.parametrize("mask", MASKS)
def test_masks(device: torch.device, mask: str, small_tiles: bool) -> None:
    heads = 2 if mask.startswith(("head", "full")) else 1
    check(Case(mask=mask, heads=heads, heads_k=heads, deterministic=small_tiles), device)


@pytest.mark.parametrize("mask", ["", "key-bool", "full-add"])
def test_masks_in_one_pass(device: torch.device, mask: str) -> None:
    check(Case(40, 60, mask=mask, dtype=F16, dropout_p=0.2), device)


@pytest.mark.parametrize("window", [(-1, 0), (0, 3), (9, -1), (2**40, 4)])
@pytest.mark.parametrize("lengths", [(), PACKED])
def test_windows(
    device: torch.device, window: tuple[int, int], lengths: tuple[tuple[int, int], ...], small_tiles: bool
) -> None:
    check(Case(50, 70, 1, lengths=lengths, window=window, deterministic=small_tiles), device)


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (5, 3)])
@pytest.mark.parametrize("sizes", [(50, 20), (20, 50)])
def test_windows_in_one_pass(device: torch.device, window: tuple[int, int], sizes: tuple[int, int]) -> None:
    check(Case(*sizes, window=window), device)
    check(Case(lengths=PACKED, window=window), device)


@pytest.mark.parametrize(("mask", "dropout_p"), [("", 0.0), ("key-bool", 0.3), ("full-add", 0.3)])
def test_packed(device: torch.device, mask: str, dropout_p: float, small_tiles: bool) -> None:
    check(Case(heads=2, heads_k=1, lengths=PACKED, mask=mask, dropout_p=dropout_p, deterministic=small_tiles), device)


@pytest.mark.parametrize(
    ("seqused", "mask"), [((70, 0), ""), ((33, 1), ""), ((33, 1), "key-bool"), ((32, 64), "full-bool")]
)
def test_valid_keys(device: torch.device, seqused: tuple[int, ...], mask: str, small_tiles: bool) -> None:
    check(Case(seqused=seqused, mask=mask, deterministic=small_tiles), device)


def test_valid_keys_in_one_pass(device: torch.device) -> None:
    check(Case(20, 40, seqused=(0, 33)), device)


@pytest.mark.parametrize("heads_k", [1, 2])
def test_grouped_heads(device: torch.device, heads_k: int, small_tiles: bool) -> None:
    case = Case(20, 40, 1, heads=4, heads_k=heads_k, dropout_p=0.1, deterministic=small_tiles, mask="head_key-bool")
    check(case, device)


@pytest.mark.parametrize("scale", [0.0, -0.3, 3.0])
def test_scales(device: torch.device, scale: float) -> None:
    check(Case(20, 40, scale=scale), device)
    check(Case(20, 40, scale=scale, mask="key-add"), device)


@pytest.mark.parametrize("dout", ["expanded", "permuted"])
def test_strides_of_dout(device: torch.device, dout: str) -> None:
    check(Case(20, 40, dout=dout), device)


def test_no_keys_at_all(device: torch.device) -> None:
    q, k, v, dout, args = make_inputs(Case(20, 0), device)
    out, lse, dq, dk, dv = run(q, k, v, dout, args, False)
    assert not bool(out.any()) and bool(lse.isneginf().all()) and not bool(dq.any())


@pytest.mark.usefixtures("small_tiles")
def test_lengths_beyond_the_stated_maximum(device: torch.device) -> None:
    # the caller's mistake: nothing outside the mask or the outputs may be touched
    q, k, v, dout, args = make_inputs(Case(lengths=((40, 50), (20, 30)), mask="full-add"), device)
    bias = guarded((2, 1, 33, 35), F32, device)[0]
    run(q, k, v, dout, (bias.fill_(0.0), *args[1:5], 33, 35, *args[7:]), False)


@pytest.mark.parametrize("starts", [(0, 40), (-3, 24), (10, 4), (0, 30, 60), (10, -(2**31))])
@pytest.mark.parametrize("deterministic", [False, True])
def test_wrong_sequence_bounds_touch_nothing_else(
    device: torch.device, starts: tuple[int, ...], deterministic: bool
) -> None:
    # 24 tokens; on a GPU nobody checks the values: a kernel must cut them off itself
    q, k, v, dout, args = make_inputs(Case(lengths=((24, 24),)), device)
    cu = torch.tensor(starts, dtype=torch.int32, device=device)
    run(q, k, v, dout, (*args[:2], cu, cu, args[4], 64, 64, *args[7:]), deterministic)


@pytest.mark.parametrize(("sk", "deterministic"), [(130, True), (30, False)])
def test_bitwise_determinism(device: torch.device, sk: int, deterministic: bool) -> None:
    case = Case(70, sk, dtype=F16, dropout_p=0.1, mask="key-bool", deterministic=deterministic)
    q, k, v, dout, args = make_inputs(case, device)
    first, second = (run(q, k, v, dout, args, deterministic) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_forward_does_not_depend_on_other_sequences(device: torch.device) -> None:
    q, k, v, dout, args = make_inputs(Case(20, 40, batch=3), device)
    whole = run(q, k, v, dout, args, True)
    alone = run(q[1:2], k[1:2], v[1:2], dout[1:2], args, True)
    assert all(torch.equal(a[1:2], b) for a, b in zip(whole, alone, strict=True))


@pytest.mark.parametrize(("keys", "hidden"), [(32, 8), (96, 8), (96, 40)])  # one pass; a part of a block; more than one
@pytest.mark.parametrize("deterministic", [False, True])
def test_padding_that_a_key_mask_hides_is_never_read(
    device: torch.device, keys: int, hidden: int, deterministic: bool
) -> None:
    q, k, v = (torch.randn(1, n, 2, 32, device=device) for n in (20, keys, keys))
    mask = torch.arange(keys, device=device)[None, None, None] < keys - hidden
    dout = torch.randn_like(q)
    results = []
    for poison in (0.0, float("nan")):
        k[:, keys - hidden :], v[:, keys - hidden :] = poison, poison
        args = (mask, None, None, None, None, 20, keys, 0.2, 0.0, -1, -1)
        results.append(run(q, k, v, dout, args, deterministic))
    for name, clean, poisoned in zip(("out", "lse", "dq", "dk", "dv"), *results, strict=True):
        torch.testing.assert_close(poisoned, clean, msg=name)  # atomics may add in another order


def test_padded_and_packed_drop_the_same_elements(device: torch.device) -> None:
    lengths = (37, 20, 64)
    q, k, v, dout, args = make_inputs(Case(64, 64, batch=3, dropout_p=0.4, seqused=lengths), device)
    padded = run(q, k, v, dout, args, True)
    rows = [slice(0, n) for n in lengths]
    packed_inputs = [torch.cat([x[b, r] for b, r in enumerate(rows)]) for x in (q, k, v, dout)]
    cu = torch.tensor([0, 37, 57, 121], dtype=torch.int32, device=device)
    packed = run(*packed_inputs, (None, None, cu, cu, *args[4:]), True)
    # a query behind the end of its sequence exists in one layout only and moves dk and dv: compare the others
    for name in (0, 2):
        expected = torch.cat([padded[name][b, r] for b, r in enumerate(rows)])
        assert float((packed[name] - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("tf32", [False, True])
def test_fp32_products_obey_allow_tf32(device: torch.device, tf32: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        assert attention.precision_of(torch.empty(1, device=device)) == ("tf32" if tf32 else "ieee")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has no fp32_precision")
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_fp32_products_obey_fp32_precision(device: torch.device, precision: str) -> None:
    """In a process of its own: torch refuses to read the older setting once the newer one was used."""
    code = (
        "import torch; from fasttx.kernels.attention import precision_of\n"
        f"torch.backends.cuda.matmul.fp32_precision = {precision!r}\n"
        "print(precision_of(torch.empty(1)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == precision


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 103, 120])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_config_covers_every_shape(arch: int, itemsize: int) -> None:
    for kernel in ("fwd", "dkdv", "dq", "dbias"):
        for dim in (1, 32, 33, 64, 100, 128, 129, 256):
            for length in (0, 1, 16, 17, 100, 128, 129, 4096):
                tile = config(kernel, dim, itemsize, arch, length, length)
                assert tile.block_m % 16 == 0 and tile.block_n % 32 == 0 and tile.block_m <= max(16, 2 * length)
                assert tile.num_warps in (1, 2, 4, 8)
    assert {k for k, _, _ in TABLE} == {k for k, _ in TABLE_FP32} == {"fwd", "dkdv", "dq", "dbias"}
