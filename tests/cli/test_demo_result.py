"""The demo on a busy machine, without matplotlib, on a full disk: it ends in time, and its result is not lost."""

from __future__ import annotations

import io
import itertools
import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

typer = pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("transformers")

from demo_checkpoint import small_checkpoint, small_corpus  # noqa: E402
from rich.console import Console  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from fasttx.bench import cores, corpus  # noqa: E402
from fasttx.cli import demo as demo_module  # noqa: E402
from fasttx.cli import demo_arms, demo_run  # noqa: E402

app = typer.Typer()
app.command()(demo_module.demo)
CPU = torch.device("cpu")
FOREVER = demo_arms.Clock(None)


class Run:
    """The demo at tiny size on the small checkpoint."""

    def __init__(self, place: Path) -> None:
        self.out = place / "out"
        model, texts = small_checkpoint(place / "checkpoint"), small_corpus(place / "corpus.txt")
        self.arguments = ["--tiny", "--model", str(model), "--train", str(texts), "--dev", str(texts)]

    def __call__(self, *more: str, code: int = 0) -> Any:
        env = {"COLUMNS": "80", "NO_COLOR": "1"}
        result = CliRunner().invoke(app, [*self.arguments, "--out", str(self.out), *more], env=env)
        assert result.exit_code == code, result.output + repr(result.exception)
        return result


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


# ---------------------------------------------------------------------------------------------------- nothing is lost


def test_without_matplotlib_there_is_all_but_the_picture(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_run, "_can_plot", lambda: False)
    result = run()
    assert "accuracy on 2 texts" in result.stdout and f"Written: {run.out / 'demo.json'}" in result.stdout
    assert "matplotlib is not installed (pip install 'fasttx[bench]')" in result.stderr
    assert json.loads((run.out / "demo.json").read_text())["plot"] is None and not (run.out / "loss.png").exists()


@pytest.mark.parametrize("broken", ["demo.json", "loss.png"])
def test_a_disk_that_is_full_costs_the_file_and_not_the_table(
    broken: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", broken)

    monkeypatch.setattr(*((Path, "write_text") if broken == "demo.json" else (demo_run, "draw")), full)
    result = run(code=2)
    assert "accuracy on 2 texts" in result.stdout
    assert "No space left on device" in result.stderr and broken in result.stderr
    assert (run.out / "demo.json").exists() == (broken == "loss.png")
    found = json.loads(run("--json", code=2).stdout)
    assert found["training"]["times"]["turns"] == 2


def test_the_folder_is_tried_before_the_first_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_arms, "compare_embedding", lambda *_: pytest.fail("a step ran"))
    real = tempfile.NamedTemporaryFile

    def refuse(*args: Any, dir: Any = None, **options: Any) -> Any:
        if dir == run.out:
            raise PermissionError(13, "Permission denied")
        return real(*args, dir=dir, **options)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    assert f"--out {run.out}: Permission denied" in run(code=2).stderr.replace("\n", "")
    with pytest.raises(corpus.InputError, match="Not a directory; the result needs a folder that can be written"):
        (run.out.parent / "file").write_text("")
        demo_run.try_folder(run.out.parent / "file" / "below")


def test_nothing_but_the_result_is_left_in_the_folder(run: Run) -> None:
    run()
    assert {path.name for path in run.out.iterdir()} <= {"demo.json", "loss.png"}


# ------------------------------------------------------------------------------------------------------------ progress


def test_in_a_pipe_each_part_is_told_once(run: Run) -> None:
    lines = run().stderr.splitlines()
    for part in ("load weights and text", "embed 8 texts, rounds: 4", "fine-tune, steps: 3", "evaluate, batches"):
        assert [line.startswith(part) for line in lines].count(True) == 1, lines
    assert any(line == "Measuring takes 3 min at most (--seconds)." for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_slow_part_tells_how_long_it_still_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(demo_module.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    advance = demo_module._lines(Console(file=out, width=80), "fine-tune, steps", 10)
    for _ in range(10):
        advance()
    shown = [f"fine-tune, steps: {n} of 10, about {6 * (10 - n)} s left" for n in (2, 4, 6, 8)]
    assert out.getvalue().splitlines() == ["fine-tune, steps: 10", *shown]


# ------------------------------------------------------------------------------------------------------- a busy machine


@pytest.mark.parametrize(("free", "threads"), [(0, 1), (1, 1), (2, 2), (64, 3)])
def test_as_many_threads_as_cores_are_free(free: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "allowed", lambda: 64)
    monkeypatch.setattr(cores, "free", lambda: free)
    before, out = torch.get_num_threads(), io.StringIO()
    torch.set_num_threads(3)
    try:
        with demo_module._free_cores(Console(file=out, width=200)):
            assert torch.get_num_threads() == threads
            assert os.environ["OMP_WAIT_POLICY"]  # threads of a process that starts with it wait asleep
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        with demo_module._free_cores(Console(file=out, width=200)):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    if not torch.cuda.is_available():
        assert f"{free} of 64 cores are free" in out.getvalue()
        assert ("Other work takes the rest" in out.getvalue()) == (free < 64)


def over(after: int) -> Any:
    """A clock that is over when it was asked so often."""
    clock = demo_arms.Clock(None)
    left = iter([False] * after)
    clock.over = lambda: next(left, True)  # type: ignore[method-assign]
    return clock


class Encoder(torch.nn.Module):
    """Writes down who is called; as both an encoder and a classifier."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.name, self.log = name, log

    def forward(self, attention_mask: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        self.log.append(self.name)
        hidden = self.weight * attention_mask[..., None].float()
        loss = self.weight.square().sum()
        return type("Output", (), {"last_hidden_state": hidden, "logits": hidden[:, 0], "loss": loss})()


def pair() -> tuple[dict[str, Any], list[str], list[demo_arms.Batch]]:
    log: list[str] = []
    batch = {"attention_mask": torch.ones(4, 3, dtype=torch.long), "labels": torch.zeros(4, dtype=torch.long)}
    return {name: Encoder(name, log) for name in "ab"}, log, [batch] * 6


def test_where_time_is_short_there_is_less_of_everything() -> None:
    arms, log, batches = pair()
    texts_ = [{"attention_mask": batch["attention_mask"]} for batch in batches]
    found = demo_arms.compare_embedding(arms, texts_, CPU, 9, over(1), over(0), lambda: None)
    assert found.n_sentences == 8 and found.times.turns == 3
    trained = demo_arms.fine_tune(arms, batches, 1e-3, CPU, over(0), lambda: None)
    assert [len(losses) for losses in trained.losses.values()] == [4, 4]
    demo_arms.judge(trained, arms, batches, over(1), lambda: None)
    assert trained.n_dev == 8 and set(trained.dev_accuracy) == {"a", "b"}
    whole = demo_arms.compare_embedding(arms, texts_, CPU, 5, FOREVER, FOREVER, lambda: None)
    assert whole.n_sentences == 24 and whole.times.turns == 5


def test_the_bound_of_the_command_reaches_every_part(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine, on which seconds pass between any two looks at the clock."""
    now = itertools.count()
    monkeypatch.setattr(demo_arms, "time", SimpleNamespace(monotonic=lambda: next(now), perf_counter=time.perf_counter))
    monkeypatch.setattr(demo_arms.Settings, "tiny", lambda seed: demo_arms.Settings(seed, batch_size=4))
    result = run("--steps", "40", "--seconds", "10")
    assert "Time was short: 4 of 32 texts, 3 of 9 rounds, 7 of 40 steps." in " ".join(result.stdout.split())
    assert "Measuring takes 10 s at most (--seconds)." in result.stderr.splitlines()
    found = json.loads(run("--steps", "40", "--seconds", "1000", "--json").stdout)
    assert [len(losses) for losses in found["training"]["losses"].values()] == [40, 40]


def test_the_arms_take_turns_batch_by_batch() -> None:
    """Neither is always the first, nor runs twice where the other runs once."""
    arms, log, batches = pair()
    texts_ = [{"attention_mask": batch["attention_mask"]} for batch in batches[:3]]
    demo_arms.compare_embedding(arms, texts_, CPU, 2, FOREVER, FOREVER, lambda: None)
    assert "".join(log[6:]) == "abbaab" + "baabba"
    log.clear()
    demo_arms.fine_tune(arms, batches[:3], 1e-3, CPU, FOREVER, lambda: None)
    assert "".join(log) == "abbaab"


@pytest.mark.parametrize(
    ("plain", "patched", "clear"),
    [
        ([10, 11, 10, 12, 10], [5, 6, 5, 5, 6], True),
        ([5, 6, 5, 5, 6], [10, 11, 10, 12, 10], True),
        ([10, 40, 10, 41, 10], [30, 12, 28, 13, 31], False),  # whoever runs first is slow
        ([10, 10, 10, 10, 10], [9, 11, 9, 11, 10], False),
        ([10, 11], [5, 5], False),  # two turns may agree by chance
    ],
)
def test_a_measurement_that_disagrees_with_itself_is_no_result(
    plain: list[float], patched: list[float], clear: bool
) -> None:
    assert demo_arms.Times.of({"a": plain, "b": patched}).clear == clear


def result(speedup: float, clear: bool, run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("--json").stdout)
    for part in ("embedding", "training"):
        found[part]["times"] |= {"speedup": speedup, "clear": clear, "speedup_low": 0.41, "speedup_high": 1.93}
    return found


def test_the_table_shows_the_spread_and_no_ratio_that_means_nothing(run: Run) -> None:
    def shown(found: dict[str, Any]) -> str:
        console = Console(width=80, record=True, file=io.StringIO())
        demo_module.show(found, console)
        text = console.export_text()
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        return text

    sure, unsure = shown(result(1.62, True, run)), shown(result(0.8, False, run))
    assert sure.count("1.62x") == 2 and "unclear" not in sure and "0.41x to 1.93x" in sure
    assert "0.80x" not in unsure and "0.41x to 1.93x" in unsure
    assert "speed of embedding and training is unclear" in " ".join(unsure.split())
    found = result(1.62, True, run)
    found["settings"]["steps"] = 60
    assert "Time was short: 3 of 60 steps" in shown(found)
