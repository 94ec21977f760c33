"""What comes back from a GPU becomes a page and its rows, or is refused; what goes there is put in its place."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from bench.gpu import prebuilt, records, report


def result(stage: str, item: str, **given: object) -> records.Line:
    return {"stage": stage, "part": "first", "item": item, "ok": True, "text": "t", **given}


def made_up(out: Path, **more: object) -> None:
    """Files as a GPU would leave them."""
    out.mkdir()
    found = {"device": "NVIDIA Made-Up", "commit": "0123456789ab", "torch": "2.11.0", "triton": "3.6.0"}
    records.append(out / "environment.jsonl", result("environment", "machine", found=found, **more))
    for dtype, ok in (("bfloat16", True), ("bfloat16", True), ("float16", False)):
        verdict = dict(op="softmax", direction="fwd", dtype=dtype, backend="triton", ok=ok)
        records.append(out / "ops.jsonl", result("ops", "softmax-1", **verdict))
    records.append(out / "ops.jsonl", result("ops", "kl_div-1", ok=False, lost=True, text="crashed: SIGSEGV"))
    records.append(out / "kernels.jsonl", result("rows", "softmax-1", key=True, expected="0.9 | more"))
    (out / "run.log").write_text("said\n")


def page(folder: Path) -> Path:
    path = folder / "page.txt"
    path.write_text(f"# Page\n\n{report.BEGIN}\n\nNo GPU has.\n\n{report.END}\n\nThe end.\n")
    return path


def test_a_report(tmp_path: Path) -> None:
    made_up(tmp_path / "one")
    made_up(tmp_path / "two")
    to = tmp_path / "results" / "made-up"
    for _ in range(2):  # a second time replaces the first
        out = [str(tmp_path / "one"), str(tmp_path / "two")]
        assert report.main([*out, "--to", str(to), "--page", str(page(tmp_path))]) == 0
        text = (tmp_path / "page.txt").read_text()
        assert "NVIDIA Made-Up at 0123456789ab" in text and "No GPU has." not in text and text.endswith("The end.\n")
        assert "| `triton` | `softmax` | bfloat16 (4) | float16 (2 of 2) |" in text
        assert "Not finished there: ops kl_div-1." in text
        assert {p.name for p in to.iterdir()} == {
            "environment.jsonl",
            "ops.jsonl",
            "kernels.jsonl",
            "run.log",
            "README.md",
        }
        assert len(records.read(to / "ops.jsonl")) == 8 and (to / "run.log").read_text() == "said\nsaid\n"
        summary = (to / "README.md").read_text()
        assert "| BAD | kl_div-1 | crashed: SIGSEGV |" in summary and "| softmax-1 | t | 0.9 / more |" in summary


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: records.append(out / "ops.jsonl", result("ops", "x", rehearsal=True)), "1 lines of a rehearsal"),
        (lambda out: shutil.rmtree(out), "without a result"),
        (lambda out: (out / "environment.jsonl").unlink(), "no line of the item 'machine'"),
        (lambda out: (out.parent / "page.txt").write_text("# Page"), "without its two markers"),
    ],
)
def test_what_cannot_become_a_report(tmp_path: Path, spoil, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    made_up(tmp_path / "out")
    before = page(tmp_path)
    spoil(tmp_path / "out")
    text = before.read_text()
    assert report.main([str(tmp_path / "out"), "--to", str(tmp_path / "to"), "--page", str(before)]) == 1
    assert message in capsys.readouterr().err
    assert before.read_text() == text and not (tmp_path / "to").exists()


def test_the_page_has_its_markers() -> None:
    assert report.between(report.PAGE.read_text(encoding="utf-8"), ["x"]).count("\nx\n") == 1


# ------------------------------------------------------------------------------------------------- what was prepared


def prepared(folder: Path, **given: object) -> Path:
    folder.mkdir()
    (folder / "cache").mkdir()
    (folder / "cache" / "kernel.cubin").write_text("code")
    with tarfile.open(folder / prebuilt.CACHE_FILE, "w:xz") as tar:
        tar.add(folder / "cache" / "kernel.cubin", arcname="kernel.cubin")
    (folder / f"_C{prebuilt.SUFFIX}").write_text("module")
    made = prebuilt.versions() | {"commit": prebuilt.commit(), "variants": 1} | given
    (folder / prebuilt.MANIFEST).write_text(json.dumps(made))
    return folder


def test_what_was_prepared_is_put_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "fasttx").mkdir()
    folder = prepared(tmp_path / "made")
    said = prebuilt.unpack(False, folder, tmp_path / "cache", tmp_path / "fasttx")
    assert (tmp_path / "cache" / "kernel.cubin").read_text() == "code"
    assert (tmp_path / "fasttx" / f"_C{prebuilt.SUFFIX}").read_text() == "module"
    assert "1 variants" in said[0] and not any("compiled here" in text for text in said)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"triton": "0.1"}, "prepared for other versions (triton 0.1"),
        ({"commit": "0123"}, "kernels that have changed since"),
    ],
)
def test_what_was_prepared_for_something_else_is_said(tmp_path: Path, given: dict[str, str], message: str) -> None:
    (tmp_path / "fasttx").mkdir()
    folder = prepared(tmp_path / "made", **given)
    said = prebuilt.unpack(False, folder, tmp_path / "cache", tmp_path / "fasttx")
    assert any(message in text for text in said)
    assert (tmp_path / "cache").exists() == ("triton" not in given)
    assert "nothing was prepared" in prebuilt.unpack(False, tmp_path / "none", tmp_path / "cache")[0]
    assert prebuilt.unpack(True, folder, tmp_path / "other") == [] and not (tmp_path / "other").exists()
