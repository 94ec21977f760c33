"""`python -m bench.bound`: units and clocks of machine code that is known, and the tables of the pages."""

from __future__ import annotations

import re
from pathlib import Path

import cuda_build
import pytest
from cuda import machine_code

from bench import bound
from bench.machine_units import CHIPS, FROM_REGISTERS, clocks

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
DOCS = Path(__file__).parents[2] / "docs" / "kernels"
# 2,048 and 4,096 products of 16 and 8 bits; what else an attention kernel has
CODE = ("HMMA.16816.F32.BF16", "IMMA.16832.S8.S8", "MUFU.EX2", "FFMA", "IMAD.WIDE.U32", "LOP3.LUT", "BRA", "UIADD3")
MEMORY = ("LDSM.16.MT88.4", "LDS.64", "STS", "LDGSTS.E.BYPASS.128.ZFILL", "LDG.E.128")


@pytest.mark.parametrize(
    "arch, products, floats", [("80", 2 + 2, 0.5 + 0.5), ("90", 1.5 + 1.5, 0.5), ("100", 1.5 + 1.5, 0.5)]
)
def test_clocks_of_each_unit(arch: str, products: float, floats: float) -> None:
    """IMAD has half of the lanes that FFMA has on sm_90, and all of them on sm_80."""
    found = clocks([*CODE, *MEMORY], CHIPS[arch])
    assert found["tensor cores"] == pytest.approx(products)
    assert found["FMA"] == pytest.approx(floats)
    # sixteen exponentials a clock; of integers LOP3 alone; 512 + 256 + 128 + 512 bytes; copies of 512 bytes
    assert found["MUFU"] == 2 and found["ALU"] == 0.5 and found["issue"] == 13 / 4
    assert found["shared memory"] == 4 + 2 + 1 + 4 and found["L2"] == 8
    assert clocks(["IMAD", "IMAD", "IMAD", "FFMA"], CHIPS[arch])["FMA"] == (2 if arch == "80" else 1.5)


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("HGMMA.64x64x8.F32.TF32", "90"),
        ("IGMMA.64x256x32.S8.S8", "90"),
        ("UTCHMMA", "90"),
        ("HMMA.1688.F32.TF32", "90"),
        ("HGMMA.64x64x16.F32", "80"),
        ("HGMMA.64x64x16.F32", "100"),
    ],
)
def test_products_whose_rate_it_does_not_know_are_refused(name: str, arch: str) -> None:
    with pytest.raises(ValueError, match=rf"instruction: got {re.escape(name)}; allowed is mma.sync"):
        clocks([name], CHIPS[arch])


def test_products_of_a_warpgroup() -> None:
    """2,048 multiply-adds a clock, and a warp has a quarter. K-major operands of 64 and 128 rows of 32 bytes, or the
    first one in registers."""
    scores, values = "HGMMA.64x128x16.F32.BF16", "HGMMA.64x64x16.F32.BF16" + FROM_REGISTERS
    found = clocks([scores] * 4, CHIPS["90"])
    assert found["tensor cores"] == 4 * 64 / 4 and found["shared memory"] == 4 * (64 + 128) * 32 / 4 / 128
    found = clocks([values] * 4, CHIPS["90"])
    assert found["tensor cores"] == 4 * 32 / 4 and found["shared memory"] == 4 * 64 * 32 / 4 / 128


def test_what_tma_copies_counts() -> None:
    """Of two rounds: 2,560 bytes each on their way into shared memory, which takes 128 a clock, from L2, which gives
    64; at 1.83 GHz."""
    loop = bound.Loop(("FFMA",), 160)
    found = bound.bound(bound.Work("call", 2, 132, 10, 1e6, copied=2560), loop, CHIPS["90"])
    assert found.microseconds["shared memory"] == pytest.approx(2 * 20 / 1830)
    assert found.microseconds["L2"] == pytest.approx(2 * 40 / 1830)


def test_a_bound_is_that_of_the_busiest_multiprocessor() -> None:
    """109 blocks on 108 multiprocessors: one has two. Four warps, 3 rounds, 100 products of 2 clocks, 1.41 GHz."""
    loop = bound.Loop(("HMMA.16816.F32.BF16",) * 100, 128)
    found = bound.bound(bound.Work("call", 3, 109, 10, 1e6), loop, CHIPS["80"])
    assert found.microseconds["tensor cores"] == pytest.approx(2 * 3 * 4 * 200 / 1410)
    assert found.limits()[:2] == ["tensor cores", "issue"] and found.least == found.microseconds["tensor cores"]
    assert bound.row(found) == ("call", "A100", "tensor cores", "issue 0.12", "3.4", "0")
    found = bound.bound(bound.Work("call", 3, 109, 2.04e9, 1e12), loop, CHIPS["80"])
    assert found.least == found.microseconds["HBM"] == pytest.approx(1000) and bound.row(found)[2:4] == (
        "HBM",
        "tensor cores 0.00",
    )


def test_what_calls_ask_for() -> None:
    work = bound.attention(2, 12, 130, 64)
    assert (work.rounds, work.blocks, work.bytes) == (3, 2 * 12 * 2, 24 * 130 * (4 * 128 + 4))
    assert work.operations == 4 * 24 * 130**2 * 64
    work = bound.attention_sm90(2, 12, 130, 64)  # three tiles share the two blocks of keys, of K and V
    assert (work.rounds, work.blocks, work.copied) == (2, 24 * 3, 2 * 128 * 128 / 3)
    assert bound.attention_sm90(2, 12, 640, 64).copied == 2 * 128 * 128 / 10  # five blocks stay for all ten
    assert bound.attention_sm90(2, 12, 512, 128).copied == 2 * 128 * 256 / 2  # two blocks do, not four
    work = bound.int8_linear(129, 100, 256)
    assert (work.rounds, work.blocks, work.bytes) == (2, 4, 129 * 100 + 25600 + 2 * 129 * 256 + 4 * 385)


def test_it_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bound, "ROOT", DOCS)
    assert bound.main([]) == 2
    assert "is not a checkout of fasttx" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        bound.main(["softmax"])
    assert "KERNEL: got softmax; allowed is attention, attention_sm90, int8_linear" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(LACKS is not None, reason=str(LACKS))
class TestOfTheKernels:
    @pytest.mark.parametrize(
        "name, page",
        [("attention", "attention"), ("attention_sm90", "attention_cuda"), ("int8_linear", "int8_linear")],
    )
    def test_the_pages_have_its_table(self, name: str, page: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert bound.main([name]) == 0
        printed = capsys.readouterr().out
        assert "a bound by machine code, not a measurement" in printed
        table = printed[printed.index("| call |") :].strip()
        assert table in (DOCS / f"{page}.md").read_text(encoding="utf-8"), table

    def test_published_kernels_of_this_shape_keep_to_it(self) -> None:
        """FlashAttention-2, which has these instructions and tiles, reaches 73 % of an A100's 312 TFLOP/s at best
        (Dao, 2023), and 324 TFLOP/s on an H100 with head_dim 64 (Shah and others, 2024): below the bound, and the bound
        below the data sheet's peak."""
        for arch, dim, published, peak in (("80", 128, 0.73 * 312, 312), ("90", 64, 324, 989)):
            found = bound.bound(bound.attention(8, 12, 4096, dim), bound.attention_loop(dim, False, arch), CHIPS[arch])
            assert published < found.work.operations / found.least / 1e6 < peak

    def test_published_kernels_by_wgmma_keep_to_it(self) -> None:
        """FlashAttention-3, which has these products, reaches 497 TFLOP/s with head_dim 64 and 648 with 128 on an H100
        (Shah and others, 2024)."""
        for dim, published in ((64, 497), (128, 648)):
            work, loop = bound.attention_sm90(8, 12, 4096, dim), bound.attention_sm90_loop(dim, False)
            found = bound.bound(work, loop, CHIPS["90"])
            assert published < found.work.operations / found.least / 1e6 < 989
