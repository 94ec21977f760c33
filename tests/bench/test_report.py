"""The report: results beside the goals. Figures are those of the files, and a rehearsal's are never shown."""

from __future__ import annotations

import re
import shlex
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from benchmark_tables import H200, kernel, step, table

from bench.gpu import records
from bench.options import parser_of
from bench.report import build, main
from bench.report.pictures import PICTURES
from bench.report.results import COLUMNS, ResultError, read
from bench.report.targets import TARGETS
from bench.report.verdicts import verdicts

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------------------------------------------ what is read


def test_the_results_of_this_repository() -> None:
    found = read(ROOT / "results")
    assert {t.kind for t in found} >= {"padding", "host", "convergence", "demo"}
    assert all(t.rows and re.fullmatch(r"[0-9a-f]{7,}", t.commit) and t.machine != t.path.parent.name for t in found)
    demo = next(t for t in found if t.kind == "demo")
    text = demo.path.read_text(encoding="utf-8")
    times = re.findall(r"(?:texts|step), ms\s*│\s*(\d+) │\s*(\d+)", text)
    assert [(r["sdpa_ms"], r["fasttx_ms"]) for r in demo.rows] == times and len(times) == 2
    assert [f"{r['real']:.0%} of the" in text for r in demo.rows] == [True, True]
    judged = [v for v in verdicts(found) if v.table is demo]
    assert judged and judged[0].target.name == "G1" and judged[0].figure is not None
    worst = min(
        (float(a) / float(b) * r["real"], float(a) / float(b)) for (a, b), r in zip(times, demo.rows, strict=True)
    )
    assert judged[0].ratio == f"{worst[1]:.2f}"


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_table_is_known_by_its_columns(kind: str, tmp_path: Path) -> None:
    table(tmp_path / "any.csv", [dict.fromkeys(sorted(COLUMNS[kind]), "1")])
    assert [t.kind for t in read(tmp_path)] == [kind]


def spoil_line(path: Path) -> None:
    (path / "kernels.jsonl").write_text('{"stage": "rows", "item": "x"}\n{"stage": "rows", "it\n')


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda path: table(path / "sales.csv", [{"month": 1, "sold": 2}]),
            "sales.csv: got columns month, sold; allowed",
        ),
        (lambda path: (path / "empty.csv").write_text("a,b\n"), "empty.csv: got no row; allowed"),
        (lambda path: (path / "photo.csv").write_bytes(b"\xff\xfe\x00\x01"), "photo.csv: got UnicodeDecodeError"),
        (spoil_line, "kernels.jsonl: got line 2 that is none of make gpu-check"),
        (lambda path: (path / "demo.txt").write_text("hello"), "demo.txt: got no table of the demo"),
        (lambda path: (path / "notes.log").write_text("hello"), "got no result in it"),
        (lambda path: path.rmdir(), "no such file or folder"),
    ],
)
def test_what_is_no_result_is_one_message(
    spoil: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    spoil(given)
    with pytest.raises(SystemExit) as ended:
        main([str(given), "--out", str(out)])
    assert ended.value.code == 2 and not out.exists()
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in message


def test_a_table_that_was_cut_off_is_read(tmp_path: Path) -> None:
    path = table(
        tmp_path / "padding.csv",
        [dict.fromkeys(("hidden", "batch", "seqlen", "real", "task", "sdpa_ms", "auto_ms"), 1)],
    )
    path.write_text(path.read_text() + "768,16,128")
    build([tmp_path], tmp_path / "out")


def test_the_pages_say_what_fine_tuning_gained() -> None:
    """The README and docs/benchmarks.md show the figures of the two tables, and the share of real tokens."""
    rows = {}
    for length in ("128", "256"):
        (found,) = read(ROOT / "results" / "amd-epyc-2-cores" / f"fine_tune_{length}.csv")
        (rows[length],) = (row for row in found.rows if row["arm"] == "fasttx")
        assert rows[length]["longest"] == length and rows[length]["commit"].startswith(found.commit[:7])
    gains = "; ".join(f"{float(row['gain']):.2f} x" for row in rows.values())
    shares = [f"{float(row['real']):.0%} real".replace("%", " %") for row in rows.values()]
    for page in ("README.md", "docs/benchmarks.md"):
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        (said,) = (line for line in lines if line.startswith("| MiniLM fine-tunes a classifier"))
        assert gains in said and all(share in said for share in shares), page


ARMS = {
    "**fasttx.patch**": ("inference", "fasttx, fp32", "fasttx, bf16", "fasttx, int8"),
    "**fasttx.capture**": (
        *("inference", "fasttx, fp32 + capture", "fasttx, bf16 + capture", "fasttx, int8 + capture"),
    ),
    "torch.compile": ("inference", "transformers, fp32 + torch.compile", "transformers, bf16 + torch.compile"),
    "ONNX Runtime": ("inference", "ONNX Runtime, fp32", "ONNX Runtime, int8"),
    "OpenVINO": ("inference", "OpenVINO, fp32", "OpenVINO, its own choice"),
    "**a training step**, fasttx.patch": ("training", "fasttx, fp32", "fasttx, bf16"),
}
"""Row of the table in the README -> task and arms of results/amd-epyc-2-cores/cpu.csv."""


def test_the_readme_says_what_was_measured_on_a_cpu() -> None:
    (found,) = read(ROOT / "results" / "amd-epyc-2-cores" / "cpu.csv")
    gains = {(row["task"], row["kind"], row["arm"]): f"{float(row['gain']):.2f}" for row in found.rows}
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for title, (task, *arms) in ARMS.items():
        (line,) = (line for line in lines if line.startswith(f"| {title}: "))
        kinds = ("ragged", "of like length", "one sentence")[: 3 if task == "inference" else 2]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1 : 1 + len(kinds)] == [", ".join(gains[task, kind, arm] for arm in arms) for kind in kinds]


# ------------------------------------------------------------------------------------------------- lines of gpu-check


def test_lines_of_a_gpu_are_figures_and_those_of_a_rehearsal_are_not(tmp_path: Path) -> None:
    line = {"stage": "attention", "part": "first", "item": "x", "ok": True, "text": "t", "seconds": 1.0}
    for mark in ({}, {"rehearsal": True}):
        out = tmp_path / f"{len(mark)}"
        out.mkdir()
        machine = {"device": H200, "commit": "fedcba987654"}
        records.append(out / "environment.jsonl", line | {"item": "machine", "found": machine} | mark)
        for peer, ms in (("fasttx[triton]", 0.2), ("sdpa[cudnn]", 0.52)):
            row = kernel("attention-bert-base-s128", "fwd", peer, ms)
            del row["commit"]
            records.append(out / "kernels.jsonl", line | row | mark)
        for arm, ms in (("fasttx", 25.0), ("sdpa", 100.0)):
            records.append(out / "step.jsonl", line | step(arm, ms) | mark)
        records.append(
            out / "step.jsonl", line | {"arm": "sdpa", "median_ms": 7777.0, "part": "second", "us": 1} | mark
        )
        report = build([out], out / "report")
        pages = [(out / "report" / name).read_text() for name in ("report.html", "README.md")]
        measured = [v for v in report.verdicts if v.figure is not None]
        if mark:
            assert not measured and report.rehearsed == 4 and "4 rows are of a rehearsal" in report.about
            assert all(
                "4 rows are of a rehearsal" in page and "2.60" not in page and "520 us" not in page for page in pages
            )
            assert all(svg is None for _, svg in report.drawn)
        else:
            assert {v.target.name for v in measured} == {"A2", "D1", "D2", "Memory"} and not report.rehearsed
            assert all("2.60" in page and f"{H200}, commit fedcba9" in page for page in pages)


# ------------------------------------------------------------------------------------------------ pages and pictures


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with something for each picture."""
    root = tmp_path_factory.mktemp("results")
    names = ("attention-bert-base-s128", "attention-d64-s1024")
    rows = [kernel(n, "fwd", p, ms) for n in names for p, ms in (("fasttx[triton]", 0.2), ("sdpa[cudnn]", 0.25))]
    rows += [kernel(f"{op}-1", "fwd", "fasttx[triton]", 1.0) for op in ("int8_linear", "bias_gelu_quantize")]
    table(root / "h200" / "kernels.csv", rows)
    table(
        root / "h200" / "model.csv",
        [step(a, ms, seqlen=n) for n in (128, 512) for a, ms in (("fasttx", 9.0), ("sdpa", 30.0))],
    )
    return root


def test_every_picture_is_drawn_and_the_page_needs_nothing_else(everything: Path, tmp_path: Path) -> None:
    report = build([everything, ROOT / "results"], tmp_path)
    assert [picture.name for picture, svg in report.drawn if svg is None] == [] and report.left_out == []
    html, text = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    for picture, svg in report.drawn:
        tree = xml.etree.ElementTree.fromstring(svg or "")
        assert tree.tag.endswith("svg") and "prefers-color-scheme:dark" in (svg or "")
        assert (tmp_path / "plots" / f"{picture.name}.svg").read_text(encoding="utf-8") == svg
        assert (tmp_path / "plots" / f"{picture.name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"](plots/{picture.name}.svg)" in text
    assert html.count('src="data:image/svg+xml;base64,') == len(PICTURES)
    assert not re.search(r'(?:src|href)="(?!data:)|@import|url\(', html)
    for target in TARGETS:
        assert f"| {target.name} |" in text and f"<td>{target.name}</td>" in html


def test_a_picture_without_a_table_says_what_brings_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(ROOT / "results"), "--out", str(tmp_path)]) == 0
    said, text = capsys.readouterr().out, (tmp_path / "README.md").read_text(encoding="utf-8")
    shown = {path.stem for path in (tmp_path / "plots").iterdir()}
    for picture in PICTURES:
        assert (
            (f"left out: {picture.name}: " in said)
            == (picture.name not in shown)
            == (f"Left out: {picture.name}: " in text)
        )
        assert picture.name in shown or picture.command in said
    assert {"loss-curves", "gain-by-padding", "speed-up"} <= shown
    assert "not measured on a GPU yet" in text or any(t.gpu for t in read(ROOT / "results"))


def test_a_model_of_ones_own_is_a_bar(tmp_path: Path) -> None:
    row = {
        "model": "m",
        "task": "embed",
        "device": "cpu",
        "batch": 32,
        "real": 0.5,
        "arm": "fasttx",
        "gain": 3,
        "ms": 1,
    }
    table(tmp_path / "own.csv", [row | {"texts_per_s": 1, "difference": "", "status": "ok"}])
    report = build([tmp_path], tmp_path / "out")
    assert [picture.name for picture, svg in report.drawn if svg] == ["speed-up"]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_the_command_of_a_picture_can_be_given(picture: Any) -> None:
    words = shlex.split(picture.command.replace("<machine>", "m"))
    if words[2] == "bench.convergence":
        assert (ROOT / "bench" / "convergence.py").is_file()
    else:
        parser_of(words[2].removeprefix("bench.")).parse_args(words[3:])


def test_without_matplotlib_the_rest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = build([ROOT / "results"], tmp_path)
    assert report.left_out and "pip install matplotlib" in report.left_out[0]
    assert "pip install matplotlib" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_text_of_a_file_stays_text(tmp_path: Path) -> None:
    table(
        tmp_path / "kernels.csv",
        [kernel("attention-d64-s256", "fwd", p, 1.0, device=f"{H200} <b>|x") for p in ("fasttx[a]", "sdpa[math]")],
    )
    build([tmp_path], tmp_path / "out")
    assert "<b>" not in (tmp_path / "out" / "report.html").read_text()
    assert f"{H200} <b>/x" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_cannot_be_read_is_an_error_of_its_own() -> None:
    with pytest.raises(ResultError, match="no such file or folder"):
        read(ROOT / "results" / "nowhere")
