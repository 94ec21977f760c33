"""`tune` on fake kernels and a fake clock: "auto" takes the fastest that is right, and nothing else."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from trust import rows
from trust.rows import LONG, NAME, OP, SHORT, clock

from bench import timer, tuning
from fasttx.ops import OPS, tuned, verdicts
from fasttx.ops.decisions import recorded
from fasttx.trust import record, tune

CPU = torch.device("cpu")
ITEM = f"{NAME}/float32/{SHORT}"
X = torch.ones(3, 8)


class InProcess:
    """Stands for the child: measures here, so that the fake clock counts."""

    asked: list[str] = []
    dies: dict[str, str] = {}
    """By item: the way during which the process ends."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device, self.quick = device, quick

    def ask(self, item: str, without: Mapping[str, str], seconds: float) -> Mapping[str, Any]:
        self.asked.append(item)
        dies = self.dies.get(item)
        if dies is not None and dies not in without:
            return {"crashed": dies, "how": "ended by signal 11"}
        return {"found": json.loads(json.dumps(tuning.measure(item, self.device, self.quick, without, lambda _: None)))}

    def stop(self) -> None:
        pass


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine on which nothing was measured yet, with the op of rows.py in its table."""
    monkeypatch.setenv("FASTTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(tuned.SWITCH, raising=False)
    monkeypatch.setitem(OPS, NAME, OP)
    monkeypatch.setattr(tune, "Measurer", InProcess)
    monkeypatch.setattr(timer, "time", clock)
    monkeypatch.setattr(clock, "cost", {"cuda": 3.0, "triton": 3.0, "torch": 3.0})
    monkeypatch.setattr(rows, "LONG_COSTS", {})
    monkeypatch.setattr(rows, "FACTOR", {"cuda": 2.0, "triton": 2.0})
    monkeypatch.setattr(InProcess, "asked", [])
    monkeypatch.setattr(InProcess, "dies", {})
    restart()
    yield tmp_path
    restart()


def restart() -> None:
    """What this process has learned is forgotten, as at the next start."""
    tuned.forget()
    verdicts.forget()
    rows.LAUNCHED.clear()


def measure(**options: Any) -> tune.Outcome:
    return tune.tune(CPU, only=[NAME], **options)


def test_auto_takes_the_faster_of_two_kernels_forward_and_backward() -> None:
    assert OP.runs("auto", X) == "cuda", "the first of the row, before anything is measured"
    clock.cost["triton"] = 2.0
    outcome = measure()
    assert set(outcome.measured) == {f"{NAME}/{dtype}/{r}" for dtype in ("float32", "bfloat16") for r in (SHORT, LONG)}
    assert not outcome.left and not outcome.nothing
    found = outcome.measured[ITEM]
    assert (found.takes, found.default, found.own) == ("triton", "cuda", "torch")
    assert found.gain == pytest.approx(1.5, rel=0.01) and found.gain_on_own == pytest.approx(1.5, rel=0.01)
    rows.LAUNCHED.clear()
    x = X.clone().requires_grad_()
    with recorded() as decisions:
        rows.Fn.apply(x).sum().backward()
    assert rows.LAUNCHED == {"fwd triton": 1, "bwd triton": 1} and torch.equal(x.grad, 2 * X)  # type: ignore[arg-type]
    reason = "measured on this machine: 1.50 times as fast as cuda"
    assert {(each.choice, each.reason) for each in decisions} == {("triton", reason)}
    assert OP.choice("cuda", X).backend == "cuda", "forced, another runs"  # type: ignore[union-attr]
    assert OP.runs("auto", X.half()) == "cuda", "a dtype that was not measured"
    assert OP.runs("auto", X[:0]) == "torch"


def test_pytorchs_own_operators_may_be_the_fastest(recwarn: pytest.WarningsRecorder) -> None:
    clock.cost["torch"] = 1.0
    assert measure().measured[ITEM].takes == "torch"
    rows.LAUNCHED.clear()
    rows.Fn.apply(X.clone().requires_grad_()).sum().backward()
    assert rows.LAUNCHED == {"fwd torch": 1, "bwd torch": 1}
    assert OP.own_is_faster(X) == OP.why("auto", X) == "measured on this machine: 3.00 times as fast as cuda"
    OP.warn_once(X)
    assert not recwarn.list, "what was measured is no fault to warn of"


@pytest.mark.parametrize("triton, takes", [(3.0, "cuda"), (2.9, "cuda"), (2.8, "triton")], ids=["tie", "3%", "7%"])
def test_a_tie_keeps_the_default(triton: float, takes: str) -> None:
    clock.cost["triton"] = triton
    assert measure().measured[ITEM].takes == takes == OP.runs("auto", X)


def test_each_regime_has_a_choice_of_its_own() -> None:
    clock.cost["triton"] = 2.0
    rows.LONG_COSTS["triton"] = 10.0
    measure()
    assert OP.runs("auto", torch.ones(3, 16)) == "triton" and OP.runs("auto", torch.ones(3, 17)) == "cuda"


@pytest.mark.parametrize("wrong, takes", [("triton", "cuda"), ("cuda", "triton")], ids=["another", "the default"])
def test_what_is_wrong_is_never_taken_however_fast(wrong: str, takes: str) -> None:
    clock.cost |= {wrong: 0.01}
    rows.FACTOR[wrong] = 2.1
    found = measure().measured[ITEM]
    assert found.takes == takes and wrong not in found.gains and "is off by" in found.left_out[wrong]
    assert OP.runs("auto", X) == takes, "the next of the row"
    assert verdicts.known(CPU)[f"{NAME}/{wrong}/float32"].status == "wrong", "it has failed its check, too"
    restart()
    assert OP.reasons(X)[wrong].startswith("failed its check on this machine: fwd is off by")  # type: ignore[union-attr]


def test_a_failed_check_wins_over_a_measurement() -> None:
    clock.cost["triton"] = 2.0
    measure()
    assert OP.runs("auto", X) == "triton"
    verdicts.add(CPU, {f"{NAME}/triton/float32": verdicts.Verdict("hung", "ran for more than 30 s")})
    assert OP.runs("auto", X) == "cuda" and OP.why("auto", X) == ""


def test_a_crash_costs_one_way_and_not_the_table() -> None:
    clock.cost["triton"] = 0.1
    InProcess.dies[ITEM] = "triton"
    outcome = measure()
    assert outcome.measured[ITEM].takes == "cuda" and len(outcome.measured) == 4
    assert outcome.measured[ITEM].left_out == {"triton": "crashed: ended by signal 11"}
    assert verdicts.known(CPU)[f"{NAME}/triton/float32"].status == "crashed"
    assert OP.runs("auto", torch.ones(3, 32)) == "cuda"


def test_an_item_that_always_crashes_is_given_up() -> None:
    clock.cost["triton"] = 0.1
    InProcess.dies[ITEM] = ""
    outcome = measure()
    assert outcome.left == {ITEM: "it crashed outside of what is measured"} and len(outcome.measured) == 3


@pytest.mark.parametrize("change", ["fasttx", "kernels", "device", "driver", "torch", "triton", "threads", "cpu"])
def test_a_stale_or_foreign_table_is_not_used(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock.cost["triton"] = 1.0
    measure()
    path, old = tuned.table_path(CPU), tuned.key(CPU)
    assert OP.runs("auto", X) == "triton"
    monkeypatch.setattr(tuned, "key", lambda device: old | {change: "another"})
    tuned.forget()
    assert tuned.table_path(CPU) != path and OP.runs("auto", X) == "cuda"
    tuned.table_path(CPU).write_text(path.read_text())  # one that was carried here
    tuned.forget()
    assert tuned.known(CPU) == {} and OP.runs("auto", X) == "cuda"


def test_threads_and_the_model_of_a_cpu_are_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    one = tuned.key(CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert tuned.key(CPU) == one | {"threads": "77"} and one["cpu"]


def _entry(**changes: Any) -> str:
    found = {"takes": "triton", "default": "cuda", "own": "torch", "gains": {"triton": 2.0}, "left_out": {}, "ms": {}}
    return json.dumps({"key": tuned.key(CPU), "measured": {ITEM: found | {"quick": False} | changes}})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"key": {}}'),
        lambda: _entry()[:-9],
        lambda: _entry(takes="cuda"),
        lambda: _entry(gains={"triton": -1.0}),
        lambda: _entry(gains=3, takes=3),
        lambda: _entry(takes=None),
    ],
)
def test_a_file_that_is_no_table_counts_as_none(text: str | Callable[[], str]) -> None:
    tune.write(CPU, {})
    tuned.table_path(CPU).write_text(_entry())
    assert OP.runs("auto", X) == "triton", "a table in order"
    tuned.table_path(CPU).write_text(text if isinstance(text, str) else text())
    tuned.forget()
    assert tuned.known(CPU) == {} and OP.runs("auto", X) == "cuda"
    clock.cost["triton"] = 1.0
    measure()
    assert OP.runs("auto", X) == "triton", "and is written anew"


@pytest.mark.parametrize("regime", ["no such regime", SHORT.upper()])
def test_a_regime_that_no_longer_exists_changes_nothing(regime: str) -> None:
    tune.write(CPU, {})
    tuned.table_path(CPU).write_text(_entry().replace(SHORT, regime))
    assert OP.runs("auto", X) == "cuda"


def test_the_switch() -> None:
    clock.cost["triton"] = 1.0
    measure()
    os.environ[tuned.SWITCH] = "0"
    try:
        tuned.forget()
        assert OP.runs("auto", X) == "cuda" and tuned.to_dict(CPU)["is_used"] is False
        assert ITEM in tuned.to_dict(CPU)["measured"], "it is there, and shown"
    finally:
        del os.environ[tuned.SWITCH]


def test_a_run_that_is_cut_off_leaves_what_it_has_and_is_continued() -> None:
    def cut_off(number: int, *_: object) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(step=cut_off)
    first = list(InProcess.asked)
    assert len(first) == 2 and set(tuned.known(CPU)) == set(first)
    outcome = measure()
    assert len(outcome.measured) == 2 and not set(first) & set(outcome.measured)
    assert not measure().measured, "nothing is left"
    assert len(measure(anew=True).measured) == 4


def test_a_quick_run_is_measured_again_by_a_whole_one() -> None:
    assert len(measure(quick=True).measured) == 4 and tuned.known(CPU)[ITEM].quick
    assert not measure(quick=True).measured
    assert len(measure().measured) == 4 and not tuned.known(CPU)[ITEM].quick


@pytest.mark.parametrize("quick, seconds", [(True, tune.QUICK_S), (False, tune.WHOLE_S)])
def test_the_budget_is_kept_and_what_did_not_fit_is_said(quick: bool, seconds: float) -> None:
    now = [100.0]

    def step(number: int, total: int, item: str, found: object) -> None:
        now[0] += 0.3 * seconds if found is None else 0.0

    outcome = tune.tune(CPU, quick=quick, only=[NAME], step=step, clock=lambda: now[0])
    assert len(outcome.measured) == 4 and now[0] == pytest.approx(100.0 + 1.2 * seconds)
    tuned.table_path(CPU).unlink()
    now[0], seconds = 100.0, 2 * seconds
    outcome = tune.tune(CPU, quick=quick, only=[NAME], step=step, clock=lambda: now[0])
    assert len(outcome.measured) == 2 and set(outcome.left.values()) == {"no time was left"}
    assert tune.QUICK_S < 60.0 and tune.WHOLE_S < 600.0


def test_nothing_is_measured_under_deterministic_algorithms() -> None:
    clock.cost["triton"] = 1.0
    measure()
    torch.use_deterministic_algorithms(True)
    try:
        outcome = measure(anew=True)
        assert "use_deterministic_algorithms" in outcome.reason and not outcome.measured
        assert OP.runs("auto", X) == "triton", "the table that is there is used"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "file").write_text("")
    monkeypatch.setenv("FASTTX_CACHE", str(machine / "file" / "below"))
    assert "cannot be written" in measure().reason and not InProcess.asked


def test_two_runs_at_once_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_acquire", lambda *_: False)
    assert measure().reason == "another process is measuring on this kind of device" and not InProcess.asked


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_call_obeys(backend: str) -> None:
    """The operator asks when it runs: a graph that was made before goes by what holds in the process."""
    clock.cost["triton"] = 1.0
    measure()
    torch._dynamo.reset()
    compiled = torch.compile(rows.Fn.apply, backend=backend, fullgraph=True)
    rows.LAUNCHED.clear()
    x = X.clone().requires_grad_()
    compiled(x).sum().backward()
    assert rows.LAUNCHED == {"fwd triton": 1, "bwd triton": 1}


def test_without_a_table_a_call_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    OP.choice("auto", X)
    monkeypatch.setattr("fasttx.ops.regimes.Regimes.name_of", lambda *_: pytest.fail("a regime is looked for"))
    monkeypatch.setattr(tuned, "read", lambda *_: pytest.fail("the file is read again"))
    assert OP.runs("auto", X) == "cuda"


def test_a_kernel_that_raises_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock.cost["triton"] = 0.1
    monkeypatch.setattr(clock, "cost", {"cuda": 3.0, "torch": 3.0})  # KeyError within the kernel
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure().measured[ITEM]
    assert found.takes == "cuda" and found.left_out == {"triton": "KeyError: 'triton'"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--only: got 'softmaks'; allowed are .*softmax"):
        tune.tune(CPU, only=["softmaks"])
    assert tune.wanted_names(["attention"]) == ["attention", *(n for n in tune.FORMS if n.startswith("attention:"))]
