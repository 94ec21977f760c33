"""How a benchmark shows how far it is, and that it ends when its time is up."""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import bench.host
import bench.kernels
import bench.model
import bench.padding
from bench import model_cases, progress

CPU = torch.device("cpu")


def test_without_a_terminal_each_item_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    items = [SimpleNamespace(name=name) for name in "abc"]
    assert list(progress.watcher("bench x", out)(items)) == items
    assert out.getvalue().splitlines() == [
        "bench x 1 of 3: a",
        "bench x 2 of 3: b, about 7 min left",
        "bench x 3 of 3: c, about 3 min left",
    ]


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (5401, "1 h 31 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_quick_has_a_bound_and_others_have_one_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    progress.add_bound(parser)

    def bound(*arguments: str) -> float | None:
        return progress.bound_of(parser, parser.parse_args(arguments))

    assert bound() is None and bound("--quick") == progress.QUICK_SECONDS == 120
    assert bound("--quick", "--seconds", "7") == bound("--seconds", "7") == 7
    assert "nothing new begins after 2 min (--seconds)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bound("--seconds", "-1")


def test_the_time_of_a_comparison_is_what_is_left() -> None:
    def left(deadline: float | None) -> float:
        return bench.model.Settings(CPU, torch.float32, "cpu", "auto", "inductor", 1, deadline).left()

    now = progress.time.monotonic()
    assert left(None) == left(now + 1000) == 60 and 9 < left(now + 10) <= 10 and left(now - 5) == 1


def test_every_benchmark_ends_when_its_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each says what it did not begin, and how far it was; nothing of it is a failure."""
    monkeypatch.setattr(bench.model, "QUICK_CASES", (model_cases.ModelCase("tiny", 2, 12, "even", model_cases.TASKS),))
    for module, last, message in (
        (bench.padding, 8, "not run: time budget, 8 of 8 rows"),
        (bench.host, 4, "import: not run: time budget"),
        (bench.kernels, None, "not begun in time: int8_linear"),
        (bench.model, 3, "not run: time budget"),
    ):
        name = module.__name__.split(".")[-1]
        assert module.main(["--quick", "--seconds", "1e-9", "--out", str(tmp_path / "x.csv")]) == 0
        found = capsys.readouterr()
        assert message in found.out, name
        lines = [line for line in found.err.splitlines() if line.startswith(f"bench {name} ")]
        assert len(lines) == int(re.search(r" of (\d+)", lines[0])[1]) > 1, found.err
        assert last is None or len(lines) == last


def test_lines_of_a_model_fit_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = model_cases.ModelCase("tiny", 2, 12, "even", (model_cases.INFERENCE,))
    arms: Any = [arm for arm in bench.model.ARMS if not arm.mode and arm.attention == "sdpa"]
    bench.model.run(CPU, tmp_path / "m.csv", cases=[case], arms=arms, rehearsal=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny, inference, 2 x 12, even" and max(map(len, lines)) <= 80
    assert [line.split(" ")[2] for line in lines[1:]] == ["fasttx", "sdpa", "fasttx,"]


def test_arms_without_a_figure_for_one_reason_are_one_line() -> None:
    late, done = {"arm": "fasttx", "status": "not run: time budget"}, {"arm": "sdpa", "status": "ok", "median_ms": 2.0}
    assert bench.model._lines([late, late | {"arm": "sdpa"}]) == ["  not run: time budget"]
    assert bench.model._lines([late, done]) == ["  fasttx: not run: time budget", "  sdpa 2.0 ms"]
    assert bench.model._lines([done, done]) == ["  sdpa 2.0 ms"] * 2


def test_training_says_what_it_trains() -> None:
    case = model_cases.QUICK_CASES[0]
    assert "training of a masked language model" in bench.model._named(case, model_cases.TRAINING)
