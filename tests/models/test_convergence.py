"""Training from scratch on real text, each arm in its own process: with and without the patch the loss curves coincide,
and what is wrong with a patch shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from bench import convergence
from bench import convergence_criteria as criteria
from bench.convergence_arms import TASKS, Arm

DATA = Path(__file__).resolve().parents[2] / "bench" / "texts"
STEPS = 200
SEEDS = (1, 2, 3)
ON_A_GPU = pytest.mark.skipif(
    torch.cuda.is_available(), reason="takes minutes on a GPU, one arm after the other: python -m bench.convergence"
)


@ON_A_GPU
@pytest.mark.slow
@pytest.mark.timeout(1800)  # about 20 arms in all, of 200 steps; other work on the machine slows each
@pytest.mark.parametrize("task", TASKS)
def test_loss_curves_coincide_and_faults_do_not(task: str, tmp_path: Path) -> None:
    """Faults in one task alone: what they show is that the criteria can fail."""
    plan = convergence.planned([task], SEEDS, STEPS)
    if task != "pretraining":
        verdicts = criteria.judge(convergence.run_arms(plan, tmp_path, DATA))
        assert all(verdict.ok for verdict in verdicts), verdicts
        return
    wrong_scale = [dataclasses.replace(arm, fault="wrong-scale") for arm in plan if arm.patched and not arm.dropout]
    lost_gradient = [dataclasses.replace(arm, fault="lost-gradient") for arm in plan if arm.patched and arm.dropout]
    results = convergence.run_arms([*plan, *wrong_scale, *lost_gradient], tmp_path, DATA)
    good = results[: len(plan)]
    faulty = {result["name"]: result for result in results[len(plan) :]}

    verdicts = criteria.judge(good)
    assert all(verdict.ok for verdict in verdicts), verdicts
    backends = {name.split()[1] for result in good for name in result["launches"]}
    assert backends == {"torch"}  # what a CPU runs: Triton's kernels are not what is compared here

    def failed_with(faults: list[Arm]) -> set[str]:
        """The criteria that fail where broken arms stand in for those that they copy."""
        seen = {(fault.dropout, fault.seed): faulty[fault.name] for fault in faults}
        mixed = [seen.get((r["dropout"], r["seed"]), r) if r["patched"] else r for r in good]
        return {verdict.criterion.split(",")[0] for verdict in criteria.judge(mixed) if not verdict.ok}

    assert failed_with(wrong_scale) == {"without dropout"}
    gap = f"largest gap between the means of {len(SEEDS)} and {len(SEEDS)} seeds"
    assert gap in failed_with(lost_gradient) <= {gap, "accuracy on dev.txt"}


@pytest.mark.slow
def test_a_process_that_fails_is_named(tmp_path: Path) -> None:
    """And leaves no result of an earlier run behind."""
    arm = Arm("pretraining", True, seed=1, steps=1, fault="unknown")
    (tmp_path / f"{arm.name}.json").write_text("{}")
    with pytest.raises(RuntimeError, match="pretraining-unknown-seed1: its process ended with 1"):
        convergence.run_arms([arm], tmp_path, DATA)
    assert not list(tmp_path.iterdir())
