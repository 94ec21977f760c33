"""The goals are one list that benchmarks can answer, and what tables say of each is judged by every shape."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from benchmark_tables import H200, kernel, step, table

from bench.arms import ARMS
from bench.model_cases import CASES, select
from bench.options import parser_of
from bench.report import targets
from bench.report.cpu_queries import Cpu
from bench.report.queries import Kernel, Latency, Model, Rates, among
from bench.report.results import read
from bench.report.targets import TARGETS
from bench.report.verdicts import verdicts
from bench.workloads import WORKLOADS
from bench.workloads import select as workloads

ROOT = Path(__file__).resolve().parents[2]
PLACES = [(t.name, place) for t in TARGETS for goal in t.goals for place in goal.places]


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


def test_a_model_of_ones_own_on_a_cpu(tmp_path: Path) -> None:
    base = {
        "model": "MiniLM",
        "task": "embed",
        "device": "cpu",
        "batch": 32,
        "longest": 128,
        "real": 0.5,
        "status": "ok",
    }
    times = {"as it is": 30.0, "fasttx": 10.0, "ONNX Runtime": 25.0}
    rows = [
        base | {"arm": arm, "ms": ms, "texts_per_s": 1, "gain": 30 / ms, "difference": ""} for arm, ms in times.items()
    ]
    table(tmp_path / "own.csv", rows)
    found = [v for v in verdicts(read(tmp_path)) if v.figure is not None]
    assert [(v.target.name, v.ratio, v.met) for v in found] == [("G1", "3.00", "yes"), ("G1", "2.50", "yes")]


def test_sentences_on_a_cpu(tmp_path: Path) -> None:
    base = {"model": "minilm", "task": "inference", "kind": "ragged", "real": 0.25, "status": "ok", "least_cosine": 1}
    arms = {"transformers, fp32": 160.0, "fasttx, fp32": 40.0, "fasttx, fp32 + capture": 20.0, "OpenVINO, fp32": 60.0}
    arms |= {"ONNX Runtime, fp32": 30.0, "fasttx, int8": 10.0, "ONNX Runtime, int8": 9.0}
    rows = [base | {"arm": arm, "precision": "", "ms": ms, "cpu_ms": ms, "gain": 160 / ms} for arm, ms in arms.items()]
    table(tmp_path / "cpu.csv", [*rows, *(row | {"kind": "one sentence", "real": 1.0} for row in rows)])
    found = {(v.target.name, v.goal.beside): (v.ratio, v.met) for v in verdicts(read(tmp_path)) if v.figure is not None}
    assert found["G1", "transformers, sdpa"] == ("8.00", "yes")  # padded / real tokens is 4
    assert found["G1", "ONNX Runtime"] == ("1.50", "no") and found["G1", "OpenVINO"] == ("3.00", "yes")
    assert found["G4", "transformers in float32: int8, ragged"] == ("16.00", "yes")
    assert found["G4", "ONNX Runtime, int8: int8"] == ("0.90", "no") and not any(name == "G3" for name, _ in found)
    table(tmp_path / "cpu.csv", [row | {"model": "tiny"} for row in rows])
    assert read(tmp_path)[0].rehearsed == len(rows) and not read(tmp_path)[0].rows
