"""When loss curves coincide: the criteria on made-up curves, an arm of a few steps, the files of a run."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import convergence, convergence_arms
from bench import convergence_criteria as criteria
from bench.convergence_arms import Arm

STEPS = criteria.LEAST_STEPS
DATA = Path(__file__).resolve().parents[2] / "bench" / "texts"


def curves(n: int, seed: int, shift: float = 0.0, noise: float = 0.05) -> list[list[float]]:
    """`n` falling curves; the noise has a part that lasts, as dropout's has."""
    rng = np.random.default_rng(seed)
    fall = 2 + 3 * np.exp(-np.arange(STEPS) / 40)
    return [(fall + shift + noise * (rng.normal(size=STEPS) + rng.normal())).tolist() for _ in range(n)]


def ratio(plain: list[list[float]], patched: list[list[float]]) -> float:
    return criteria.compare(plain, patched).ratio


# ------------------------------------------------------------------------------------------------------ with dropout


def test_curves_of_one_distribution_pass() -> None:
    ratios = [ratio(curves(3, seed), curves(3, 1000 + seed)) for seed in range(200)]
    assert np.mean([r <= criteria.FACTOR for r in ratios]) > 0.95
    assert ratio(curves(3, 0), curves(3, 0)) == 0


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_shifted_curves_fail(shift: float) -> None:
    result = criteria.compare(curves(3, 0), curves(3, 1, shift))
    assert result.ratio > criteria.FACTOR
    assert np.sign(result.gap).mean() == np.sign(shift)


def test_a_gap_of_a_few_windows_fails_and_is_located() -> None:
    patched = np.array(curves(3, 1))
    patched[:, 120:150] += 1.0
    result = criteria.compare(curves(3, 0), patched.tolist())
    assert result.ratio > criteria.FACTOR and 140 <= result.step <= 150


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4])
def test_one_arm_that_diverges_fails(value: float) -> None:
    patched = curves(3, 1)
    patched[2][150:] = [value] * (STEPS - 150)
    assert ratio(curves(3, 0), patched) > criteria.FACTOR


def test_scatter_of_patched_arms_is_no_excuse() -> None:
    """Two arms far off on one side, one on the other: beside their own spread the gap of the means is small."""
    patched = [np.add(curve, shift).tolist() for curve, shift in zip(curves(3, 1), (2.0, 2.0, -2.0))]
    assert ratio(curves(3, 0), patched) > criteria.FACTOR


def test_the_gap_is_in_standard_errors() -> None:
    steps = np.zeros(STEPS)
    found = criteria.compare([steps - 1, steps + 1], [steps + 3, steps + 3])
    assert found.ratio == pytest.approx(3 / np.sqrt(2 * (1 / 2 + 1 / 2)))
    assert found.fall == 0


@pytest.mark.parametrize(
    ("plain", "patched", "message"),
    [
        (curves(1, 0), curves(3, 1), "plain: got 1 curves; allowed are at least 2"),
        (curves(3, 0), [], "patched: got 0 curves"),
        ([c[:-1] for c in curves(3, 0)], curves(3, 1), f"plain: got curves of .{STEPS - 1}. steps"),
        (curves(3, 0), [c[:20] for c in curves(3, 1)], "patched: got curves of .20. steps"),
        (curves(3, 0), [c + [2.0] for c in curves(3, 1)], f"patched: got {STEPS + 1} steps"),
        (curves(1, 0) * 3, curves(3, 1), "plain: got equal curves"),
        ([[float("nan")] * STEPS, *curves(2, 0)], curves(3, 1), "plain: got a loss that is not finite"),
    ],
)
def test_what_says_nothing_is_refused(plain: Any, patched: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criteria.compare(plain, patched)


# --------------------------------------------------------------------------------------------------- without dropout


def test_exact_curves_may_differ_by_rounding_alone() -> None:
    plain = curves(1, 0)[0]
    assert criteria.largest_relative_gap(plain, plain) == 0
    one_off = list(plain)
    one_off[criteria.EXACT_STEPS - 1] *= 1 + 2e-3
    assert criteria.largest_relative_gap(plain, one_off) == pytest.approx(2e-3)
    later = list(plain)
    later[criteria.EXACT_STEPS] *= 2  # where rounding may have grown
    assert criteria.largest_relative_gap(plain, later) == 0
    one_off[3] = float("nan")
    assert criteria.largest_relative_gap(plain, one_off) == float("inf")
    with pytest.raises(ValueError, match="patched: got curves of"):
        criteria.largest_relative_gap(plain, plain[:100])


# ------------------------------------------------------------------------------------------------------ a whole run


def results(task: str) -> list[dict[str, Any]]:
    """What a good run of three seeds leaves."""
    mlm = task == "pretraining"
    found = []
    for arm in convergence.planned([task], (1, 2, 3), STEPS):
        losses = curves(1, arm.seed + 10 * arm.patched if arm.dropout else 0, noise=0.02)[0]
        parts = ["attention: fasttx", "real tokens only", *(["labelled rows only"] if mlm else [])]
        found.append(
            {
                "task": task, "name": arm.name, "patched": arm.patched, "seed": arm.seed, "dropout": arm.dropout,
                "losses": losses, "accuracy": None if mlm else 0.6 + 0.02 * (arm.seed - 2), "digest": "same",
                "replaced": parts if arm.patched else [], "packed": arm.patched,
                "without_logits": STEPS if mlm and arm.patched else 0,
                "launches": {"attention_fwd torch": 600} if arm.patched else {},
            }
        )  # fmt: skip
    return found


def failed(found: list[dict[str, Any]]) -> list[str]:
    return [verdict.criterion.split(",")[0] for verdict in criteria.judge(found) if not verdict.ok]


def patched_arms(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result for result in found if result["patched"]]


@pytest.mark.parametrize("task", convergence_arms.TASKS)
def test_a_good_run_passes(task: str) -> None:
    verdicts = criteria.judge(results(task))
    assert [v.criterion for v in verdicts if not v.ok] == []
    assert len(verdicts) == (5 if task == "pretraining" else 6)
    both = criteria.judge(results("pretraining") + results("classification"))
    assert len(both) == 11 and all(v.ok for v in both)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("packed", False),
        ("replaced", ["labelled rows only"]),
        ("replaced", ["real tokens only"]),
        ("without_logits", STEPS - 1),
        ("launches", {}),
    ],
)
def test_a_patched_arm_on_another_path_fails(key: str, value: Any) -> None:
    found = results("pretraining")
    patched_arms(found)[-1][key] = value
    assert failed(found) == ["arms that took another path than theirs"]


@pytest.mark.parametrize("key", ["packed", "replaced", "without_logits", "launches"])
def test_an_unpatched_arm_on_the_patched_path_fails(key: str) -> None:
    found = results("pretraining")
    found[0][key] = found[1][key]
    assert found[1]["patched"] and failed(found) == ["arms that took another path than theirs"]


def test_other_weights_or_batches_fail() -> None:
    found = results("pretraining")
    found[-1]["digest"] = "other"
    assert failed(found) == ["same initial weights and batches"]


def test_a_wrong_loss_without_dropout_fails() -> None:
    found = results("classification")
    exact = next(r for r in patched_arms(found) if not r["dropout"])
    exact["losses"] = [loss * (1 + 2e-4) for loss in exact["losses"]]
    assert failed(found) == ["without dropout"]
    with pytest.raises(ValueError, match="classification: got 1 kinds of arms without dropout"):
        criteria.judge([r for r in found if r is not exact])


def test_a_wrong_loss_with_dropout_fails() -> None:
    found = results("classification")
    for result in patched_arms(found):
        if result["dropout"]:
            result["losses"] = [loss + 0.2 for loss in result["losses"]]
    assert failed(found) == ["largest gap between the means of 3 and 3 seeds"]


def test_a_run_that_learns_nothing_fails() -> None:
    found = results("classification")
    level = copy.deepcopy(found)
    for result, flat in zip(found, level):
        flat["losses"] = (np.array(result["losses"]) - np.array(curves(1, 0, noise=0.0)[0]) + 2).tolist()
    assert failed(level) == ["fall of the unpatched loss"]


def test_a_worse_classifier_fails() -> None:
    found = results("classification")
    for result in patched_arms(found):
        result["accuracy"] -= 0.1
    assert failed(found) == ["accuracy on dev.txt"]


def test_the_files_of_a_run(tmp_path: Path) -> None:
    found = results("pretraining") + results("classification")
    convergence.write_curves(found, tmp_path / "curves.csv")
    convergence.write_verdicts(criteria.judge(found), tmp_path / "verdicts.csv")
    convergence.plot(found, tmp_path / "convergence.png", "no machine")
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == STEPS and list(rows[0]) == ["step", *(r["name"] for r in found)]
    assert float(rows[7]["pretraining-patched-seed2"]) == pytest.approx(found[5]["losses"][7], rel=1e-6)
    with (tmp_path / "verdicts.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 11
    assert (tmp_path / "convergence.png").read_bytes().startswith(b"\x89PNG")


class Machine:
    """Every arm takes a hundred seconds on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.said = 0, []
        context = SimpleNamespace(Process=self.started, set_forkserver_preload=lambda _: None)
        monkeypatch.setattr(convergence.multiprocessing, "get_context", lambda _: context)
        monkeypatch.setattr(convergence.time, "monotonic", lambda: self.seconds)

    def started(self, target: Any, args: tuple[Arm, Path, Path]) -> Any:
        """A process that has ended as it starts."""
        args[1].write_text(json.dumps({"losses": [1.0], "arm": args[0].name}))
        self.seconds += 100
        return SimpleNamespace(exitcode=0, start=lambda: None, join=lambda: None)

    def run(self, arms: list[Arm], out: Path, seconds: float | None = None) -> list[str]:
        found = convergence.run_arms(arms, out, DATA, jobs=1, say=self.said.append, seconds=seconds)
        return [result["arm"] for result in found]


def test_each_arm_tells_how_long_the_rest_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, arms = Machine(monkeypatch), convergence.planned(["pretraining"], [1], 10)
    assert machine.run(arms, tmp_path) == [arm.name for arm in arms]
    rest = ("5 min", "4 min", "2 min", "0 s")
    assert [line.split(";")[0] for line in machine.said] == [f"{i} of 4, about {t} left" for i, t in enumerate(rest, 1)]


@pytest.mark.parametrize(
    ("seconds", "seeds"), [(1, (2, 2)), (1199, (2, 2)), (1201, (3, 2)), (1500, (4, 2)), (1700, (4, 3)), (None, (4, 4))]
)
def test_where_time_is_short_there_are_fewer_seeds_and_both_arms_of_each(
    seconds: float | None, seeds: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tasks, six arms each are needed: twelve hundred seconds."""
    machine, arms = Machine(monkeypatch), convergence.planned(convergence_arms.TASKS, (7, 5, 8, 6), STEPS)
    want = [
        arm.name
        for task, count in zip(convergence_arms.TASKS, seeds)
        for arm in arms
        if arm.task == task and (not arm.dropout or arm.seed in (7, 5, 8, 6)[:count])
    ]
    assert machine.run(arms, tmp_path, seconds) == want
    if seconds == 1500:
        assert machine.said[5].startswith("6 of 20, about 15 min left") and "12 of 20, about 5 min" in machine.said[11]


@pytest.mark.parametrize("good", [True, False])
def test_the_exit_status_is_the_verdict(
    good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arms: list[Arm], *rest: Any, seconds: float) -> list[dict[str, Any]]:
        assert seconds == (convergence.SECONDS if good else 7)
        assert {arm.fault for arm in arms if arm.patched} == {"" if good else "leak"}
        found = results("pretraining")
        found[-1]["packed"] = good
        return found

    monkeypatch.setattr(convergence, "run_arms", run)
    status = convergence.main(["--out", str(tmp_path), *([] if good else ["--fault", "leak", "--seconds", "7"])])
    assert status == (0 if good else 1)
    printed = capsys.readouterr().out
    assert ("FAILED" in printed) is not good
    assert f"no further seed begins after {'30 min' if good else '7 s'} (--seconds)" in printed
    assert "Time was short: 8 of 24 models. --seconds gives it more." in printed
    assert {path.name for path in tmp_path.iterdir()} == {"curves.csv", "verdicts.csv", "convergence.png"}


@pytest.mark.parametrize("arguments", [["--steps", "100"], ["--seeds", "4"], ["--seeds", "4", "4"], ["--seconds", "0"]])
def test_a_run_that_could_not_be_judged_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        convergence.main(arguments)
    assert stop.value.code == 2 and "allowed are" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- arms


def test_arms_have_names_of_their_own() -> None:
    arms = [arm for fault in ("", "leak") for arm in convergence.planned(convergence_arms.TASKS, (1, 2), STEPS, fault)]
    assert len({arm.name for arm in arms}) == len(set(arms)) == 2 * 3 * 3
    assert all(arm.patched for arm in arms if arm.fault)


@pytest.mark.parametrize("task", convergence_arms.TASKS)
def test_arms_start_alike_and_take_their_own_path(task: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    plain, patched, other = (
        convergence_arms.train(arm, DATA)
        for arm in (Arm(task, False, 1, steps=3), Arm(task, True, 1, steps=3), Arm(task, False, 2, 0.0, steps=3))
    )
    assert plain["digest"] == patched["digest"] == other["digest"]
    assert plain["losses"] != other["losses"]
    assert criteria._patched_path(task, [plain, patched, other]).ok
    assert 0.5 < plain["real"] < 0.9  # ragged, or packing would have nothing to do
    assert np.allclose(plain["losses"], patched["losses"], rtol=0.1)
    assert convergence_arms.train(Arm(task, False, 1, steps=3), DATA)["losses"] == plain["losses"]
    assert convergence_arms.train(Arm(task, False, 3, 0.0, steps=3), DATA)["losses"] == other["losses"]
    assert convergence_arms.train(Arm(task, False, 1, steps=4), DATA)["digest"] != plain["digest"]
