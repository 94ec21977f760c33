"""The report: results beside the goals. Figures are those of the files, and a rehearsal's are never shown."""

from __future__ import annotations

import csv
import re
import shlex
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from bench.arms import ARMS
from bench.gpu import records
from bench.model_cases import CASES, select
from bench.options import parser_of
from bench.report import build, main, targets
from bench.report.cpu_queries import Cpu
from bench.report.pictures import PICTURES
from bench.report.queries import Kernel, Latency, Model, Rates, among
from bench.report.results import COLUMNS, ResultError, read
from bench.report.targets import TARGETS
from bench.report.verdicts import verdicts
from bench.workloads import WORKLOADS
from bench.workloads import select as workloads

ROOT = Path(__file__).resolve().parents[2]
H200 = "NVIDIA H200"
PLACES = [(t.name, place) for t in TARGETS for goal in t.goals for place in goal.places]


def kernel(workload: str, direction: str, peer: str, ms: float, **more: Any) -> dict[str, Any]:
    base = {
        "workload": workload,
        "direction": direction,
        "peer": peer,
        "device": H200,
        "inputs": "cold",
        "status": "ok",
    }
    figures = {"median_ms": ms, "low_ms": ms, "tflops": 100 / ms, "ratio": 1.0, "error": 1e-3, "allowed": 2e-3}
    return {**base, **figures, "commit": "0123456789ab"} | more


def step(arm: str, ms: float, **more: Any) -> dict[str, Any]:
    base = {
        "comparison": 0,
        "task": "training",
        "model": "bert-large",
        "lengths": "wikipedia",
        "batch": 32,
        "seqlen": 512,
    }
    figures = {"median_ms": ms, "low_ms": ms, "tokens_per_s": 1e6 / ms, "sequences_per_s": 32e3 / ms, "ratio": ms}
    return {**base, **figures, "real": 0.5, "device": H200, "arm": arm, "status": "ok", "peak_MiB": 1e3 * ms} | more


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def met(root: Path, target: str) -> list[str]:
    """The verdicts of one target's goals, in order."""
    return [v.met for v in verdicts(read(root)) if v.target.name == target]


# --------------------------------------------------------------------------------------------------------- the goals


def test_the_page_of_targets_is_the_list() -> None:
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    assert page == targets.markdown(), "python -m bench.report.targets > docs/targets.md"


def test_targets_have_names_and_numbers_of_their_own() -> None:
    assert len({t.name for t in TARGETS}) == len(TARGETS)
    for target in TARGETS:
        assert target.goals and (target.command or not any(goal.places for goal in target.goals))
        for goal in target.goals:
            assert (goal.asked is None) == bool(goal.hangs_on) and goal.text()
            assert goal.asked is not None or all(isinstance(p, Cpu) and p.asked_of_machine for p in goal.places)


def test_places_are_measured_by_some_benchmark() -> None:
    known = {w.name for w in WORKLOADS} | {"attention-d64-s2048"}  # of `make gpu-check` alone
    for name, place in PLACES:
        if isinstance(place, Kernel):
            assert {place.workload, *place.plus} <= known, name
        elif isinstance(place, Rates):
            assert {place.workload, place.than} <= known, name
        elif isinstance(place, Model):
            asked = (place.model, place.lengths, place.seqlen)
            assert asked in {(c.model, c.lengths, c.seqlen) for c in CASES if place.task in c.tasks}, name


def test_peers_of_places_are_measured_beside_us() -> None:
    """The workloads themselves say which peers they have; of models and requests, the arms."""
    peers = {w.name: {*w.build(torch.device("cpu"), "tiny", 0).peers, "device copy"} for w in WORKLOADS}
    peers["attention-d64-s2048"] = peers["attention-d64-s1024"]
    for name, place in PLACES:
        if isinstance(place, Kernel):
            known = peers[place.workload]
        elif isinstance(place, Model | Latency):
            known = {arm.name for arm in ARMS}
        else:
            continue
        for peer in place.peers:
            assert any(among(each, (peer,)) for each in known), (name, peer)


@pytest.mark.parametrize(
    "command", sorted({c for t in TARGETS for c in (t.command, *(g.command for g in t.goals)) if c})
)
def test_a_command_of_a_target_can_be_given(command: str) -> None:
    words = shlex.split(command.replace("<machine>", "m"))
    assert words[:2] == ["python", "-m"]
    name, given = (words[4], words[5:]) if words[2] == "fasttx" else (words[2].removeprefix("bench."), words[3:])
    options = parser_of(name).parse_args(given)
    if name == "model":
        assert select(None, targets=options.target)  # type: ignore[arg-type]  # not asked where targets are named
    if name == "kernels":
        assert workloads(options.only)


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


# ---------------------------------------------------------------------------------------------------------- verdicts


def test_a_goal_is_met_by_every_shape_or_not(tmp_path: Path) -> None:
    names = ("attention-d64-s1024", "attention-d64-s2048", "attention-d64-s4096")
    rows = [kernel(n, "fwd", p, ms) for n in names for p, ms in (("fasttx[triton]", 0.2), ("sdpa[cudnn]", 0.25))]
    table(tmp_path / "kernels.csv", rows)
    assert met(tmp_path, "A1") == ["yes", "not measured on a GPU yet", "yes", "no"]  # 500 TFLOP/s of 470 and 520
    rows[-1]["median_ms"] = 0.23
    table(tmp_path / "kernels.csv", rows)
    assert met(tmp_path, "A1")[0] == "no"
    table(tmp_path / "kernels.csv", rows[:-2])
    assert met(tmp_path, "A1")[0] == "so far: 2 of 3"
    table(tmp_path / "kernels.csv", [row | {"device": "NVIDIA A100"} for row in rows])
    assert met(tmp_path, "A1")[0] == "not an H200"


def test_the_fastest_peer_and_our_fastest_right_row_count(tmp_path: Path) -> None:
    name = "attention-d64-s256"
    rows = [
        kernel(name, "fwd", "fasttx[triton]", 0.2),
        kernel(name, "fwd", "fasttx[cuda]", 0.05, status="wrong"),
        kernel(name, "fwd", "fasttx[triton]", 0.01, inputs="hot"),
        kernel(name, "fwd", "sdpa[math]", 9.0),
        kernel(name, "fwd", "sdpa[flash]", 0.29, status="inexact"),
        kernel(name, "fwd", "sdpa[cudnn]", 0.1, status="unavailable: no"),
    ]
    table(tmp_path / "kernels.csv", rows)
    verdict = next(v for v in verdicts(read(tmp_path)) if v.target.name == "A2" and v.figure is not None)
    assert verdict.ratio == "1.45" and verdict.met == "no" and "sdpa[flash], 290 us" in verdict.figure.peer
    assert verdict.figure.ours == "200 us" and verdict.hardware == f"{H200}, commit 0123456"


def test_both_directions_add_up(tmp_path: Path) -> None:
    packed = "attention-bert-base-s512-ragged-packed"
    rows = [
        kernel(packed, way, peer, ms)
        for peer, times in (("fasttx[triton]", (0.1, 0.3)), ("varlen_attn", (0.2, 0.4)), ("sdpa[flash]", (1.0, 1.0)))
        for way, ms in zip(("fwd", "bwd"), times, strict=True)
    ]
    rows += [kernel("attention-bert-base-s512", way, "fasttx[triton]", 0.2, tflops=500) for way in ("fwd", "bwd")]
    table(tmp_path / "kernels.csv", rows)
    found = [v for v in verdicts(read(tmp_path)) if v.target.name == "A6"]
    assert [v.ratio for v in found] == ["5.00", "1.00", "1.50"] and [v.met for v in found] == ["no", "yes", "yes"]


def test_models_and_their_memory(tmp_path: Path) -> None:
    arms = {"fasttx": 30.0, "fasttx, lengths known": 25.0, "sdpa": 90.0, "eager": 125.0}
    rows = [step(arm, ms) for arm, ms in arms.items()]
    rows += [step(arm, ms, comparison=1) for arm, ms in (("fasttx", 30.0), ("sdpa + torch.compile", 60.0))]
    table(tmp_path / "model.csv", rows)
    assert met(tmp_path, "D1") == ["yes"]  # 1,280 sequences a second of 1,029
    assert met(tmp_path, "D2") == ["yes", "yes", "no"]  # 5, 3.6, and in turns of their own 2
    assert met(tmp_path, "Memory") == ["yes"]
    table(tmp_path / "model.csv", [row | {"peak_MiB": 1e3} for row in rows])
    assert met(tmp_path, "Memory") == ["no"]


def test_latency_of_one_request(tmp_path: Path) -> None:
    base = {"target": "E3", "model": "bert-base", "requests": 64, "device": H200, "status": "ok"}
    times = {"fasttx": 3.0, "fasttx as CUDA graphs": 0.4, "eager": 4.0}
    table(tmp_path / "serving.csv", [{**base, "arm": arm, "p50_ms": ms} for arm, ms in times.items()])
    assert met(tmp_path, "E3") == ["yes", "yes"]


@pytest.mark.parametrize(("machine", "asked"), [("Two cores of an AMD EPYC", 3.8), ("A Xeon", 2.0)])
def test_padding_on_a_cpu_is_asked_for_what_it_saves(machine: str, asked: float, tmp_path: Path) -> None:
    row = {"hidden": 768, "batch": 16, "seqlen": 128, "real": 0.5, "task": "inference", "sdpa_ms": 30, "auto_ms": 10}
    table(tmp_path / "padding.csv", [row, row | {"hidden": 32, "auto_ms": 90}])
    (tmp_path / "README.md").write_text(f"{machine}, no GPU, at commit abcdef0.\n\n- `host.csv`: at commit 1234567.\n")
    found = next(v for v in verdicts(read(tmp_path)) if v.figure is not None)
    assert found.asked == f"{asked:g} x" and found.ratio == "3.00" and found.met == ("yes" if asked < 3 else "no")
    assert found.hardware == f"{machine}, commit abcdef0"


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
