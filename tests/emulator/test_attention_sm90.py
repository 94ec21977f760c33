"""Attention's forward by wgmma and TMA: no race in any order of threads, any number of blocks, and when it is taken."""

from __future__ import annotations

import ctypes

import host_build
import host_module
import pytest
import torch

pytest.importorskip("triton", reason="the cases are those of the Triton kernels")

from ops.attention_cases import Case, check_forward, make_inputs, run_forward

from fasttx.ops.attention import cuda as attention
from fasttx.ops.attention.cuda import attention_fwd

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
BF16, F16 = torch.bfloat16, torch.float16
SEEDS = (1, 2, 3)  # odd ones run a warp as far as it gets, even ones switch at random
SHARED_BYTES = {(64, False): 213256, (128, False): 196744, (64, True): 196840, (128, True): 196744}
"""By head_dim and whether there is a mask: of a block, 5 or 2 stages of K and V, two tiles of Q for each of 3 or 2
consumers, and mbarriers."""

# (case, multiprocessors): one block that does everything after another, so that rings and slots come round
CASES = {
    "keys-stay": (Case(260, 150, 2, 2, dim=64, dim_v=64, seqused=(150, 70), dtype=BF16, aligned=True), 1),
    "keys-stream": (Case(130, 780, 1, 2, 2, dim=64, dim_v=64, dtype=F16, dropout_p=0.2, aligned=True), 1),
    "large-head": (Case(140, 300, 1, 2, dim=128, dim_v=96, seqused=(270,), dtype=BF16, aligned=True), 1),
    "key-mask": (Case(140, 300, 2, 2, dim=64, dim_v=64, mask="key-bool", dtype=BF16, aligned=True), 1),
    "bias": (Case(140, 200, 1, 2, 2, dim=128, dim_v=128, mask="full-add", dtype=F16, aligned=True), 1),
    "causal": (Case(330, 330, 1, dim=64, dim_v=64, window=(-1, 0), dtype=BF16, aligned=True), 2),
    "packed": (
        Case(dim=64, heads=2, lengths=((33, 150), (0, 5), (200, 64), (5, 0)), dropout_p=0.3, dtype=BF16, aligned=True),
        2,
    ),
}


@pytest.fixture(autouse=True)
def form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FORM", 90)


@pytest.mark.parametrize("name", CASES)
def test_no_race(race: host_module.Emulator, name: str) -> None:
    case, multiprocessors = CASES[name]
    race.set_device(90, multiprocessors)
    race.configure(SEEDS[1])
    check_forward(attention_fwd, case, torch.device("cpu"))
    assert race.last_launch() == (1, SHARED_BYTES[64 if case.dim <= 64 else 128, case.mask != ""])
    q, k, v, _, args = make_inputs(case, torch.device("cpu"))
    results = []
    for seed in SEEDS:
        race.configure(seed)
        results.append(run_forward(attention_fwd, q, k, v, args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), "the order of threads shows"


def test_the_bits_do_not_depend_on_how_many_blocks_share_the_work(plain: host_module.Emulator) -> None:
    q, k, v, _, args = make_inputs(
        Case(450, 300, 2, 2, dim=64, dim_v=64, dtype=BF16, aligned=True), torch.device("cpu")
    )
    results = []
    for multiprocessors in (1, 3, 132):  # of which the last one splits heads
        plain.set_device(90, multiprocessors)
        results.append(run_forward(attention_fwd, q, k, v, args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("arch", "aligned", "dim", "is_sm90"),
    [(90, True, 64, 1), (90, True, 128, 1), (90, False, 64, 0), (90, True, 160, 0)]
    + [(arch, True, 64, 0) for arch in (80, 100, 120)],
)
def test_the_kernel_by_the_arch_and_the_call(
    plain: host_module.Emulator, monkeypatch: pytest.MonkeyPatch, arch: int, aligned: bool, dim: int, is_sm90: int
) -> None:
    monkeypatch.setattr(attention, "FORM", attention.BY_CALL)
    plain.set_device(arch)
    check_forward(attention_fwd, Case(20, 30, 1, dim=dim, dim_v=dim, dtype=BF16, aligned=aligned), torch.device("cpu"))
    assert (plain.last_launch()[1] in SHARED_BYTES.values()) == is_sm90


def test_how_much_a_block_takes_at_a_time() -> None:
    """Whole heads where their keys stay in shared memory and all multiprocessors still have work."""
    library = ctypes.CDLL(str(host_build.build_library("plain", [host_build.HERE / "attention_config.cu"], False)))
    tiles = library.run_fwd_sm90_tiles
    tiles.argtypes, tiles.restype = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, *[ctypes.c_int] * 3], ctypes.c_int64
    assert tiles(64, 0, 384, 512, 512, 132) == 8  # 3 whole heads for most blocks
    assert tiles(64, 0, 384, 512, 641, 132) == 3  # keys that five stages do not hold
    assert tiles(64, 0, 48, 512, 512, 132) == 3 and tiles(64, 1, 48, 512, 512, 132) == 2  # too few heads
    assert tiles(128, 0, 384, 512, 256, 132) == 8 and tiles(128, 0, 384, 512, 257, 132) == 2
    assert tiles(64, 0, 1, 1, 1, 132) == 1 and tiles(64, 0, 384, 512, 512, 0) == 8
