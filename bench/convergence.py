"""Training from scratch on real text with and without the patch: do the loss curves coincide?

    python -m bench.convergence [--out DIR] [--steps 300] [--seeds 1 2 3 4 5] [--tasks pretraining classification]
                                [--seconds 1800]

Two tasks on bench/texts: masked language modelling, and a classifier of six subjects. Of each, every seed is trained
unpatched and patched with dropout, and one pair without; each arm in a process of its own. Where ``--seconds`` are too
short there are fewer seeds, two at least. Into DIR go an arm's result as JSON, curves.csv, verdicts.csv and
convergence.png; what is found stands beside what is allowed. The exit status is 1 where a criterion fails.
``--fault`` breaks the attention of the patched arms: then it should.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from . import convergence_arms as arms_
from . import convergence_criteria as criteria_
from .convergence_arms import Arm
from .convergence_criteria import Verdict
from .corpus import TEXTS
from .environment import describe
from .progress import duration

PRELOADED = [
    arms_.__name__,
    "fasttx.models",
    "transformers.models.bert.modeling_bert",
    "transformers.data.data_collator",
]
LEAST_DRAWN = 1e-8
LEAST_SEEDS = 2
"""Whose spread is the noise: with fewer nothing can be judged."""
SECONDS = 1800.0
"""The bound where none is given, several times what two idle cores need."""
COLOURS = {"plain": "#7f8c8d", "patched": "#c0392b"}


def planned(tasks: Iterable[str], seeds: Iterable[int], steps: int, fault: str = "") -> list[Arm]:
    """All arms of a run; `fault` breaks the patched ones."""
    kinds = ((False, ""), (True, fault))
    seeds = list(seeds)
    return [
        Arm(task, patched, seed, dropout, steps, broken)
        for task in tasks
        for seed, dropout in ((0, 0.0), *((seed, 0.1) for seed in seeds))
        for patched, broken in kinds
    ]


# ------------------------------------------------------------------------------------------------------------ running


def _write_result(arm: Arm, path: Path, data: Path) -> None:
    """The body of an arm's process."""
    torch.set_num_threads(1)
    path.write_text(json.dumps(arms_.train(arm, data)), encoding="utf-8")


def _pair(arm: Arm) -> tuple[str, float, int]:
    """What a patched arm and the unpatched one that it is compared with have in common."""
    return arm.task, arm.dropout, arm.seed


def least(arms: Iterable[Arm]) -> set[tuple[str, float, int]]:
    """The pairs without which nothing can be judged: of each task those without dropout, and the first two seeds."""
    pairs = dict.fromkeys(map(_pair, arms))
    needed = {pair for pair in pairs if not pair[1]}
    for task in {pair[0] for pair in pairs}:
        needed.update([pair for pair in pairs if pair[0] == task and pair[1]][:LEAST_SEEDS])
    return needed


def run_arms(
    arms: list[Arm],
    out: Path,
    data: Path = TEXTS,
    jobs: int = 0,
    say: Callable[[str], None] = print,
    seconds: float | None = None,
) -> list[dict[str, Any]]:
    """Trains each arm in a process of its own, `jobs` at a time (0: one a core, on a GPU one at a time).

    What is needed to judge goes first. After `seconds` no further pair of arms begins, but of what is needed; results
    are those of the arms that ran, in the order given.

    No arm sees what another did: a process is forked from a server that has imported everything and run nothing, which
    saves ten seconds of imports an arm, or started afresh where a GPU (no fork after its driver is awake) or the system
    asks for that.

    Raises:
        RuntimeError: names an arm whose process failed; its own message is on stderr.
    """
    on_gpu = torch.cuda.is_available()
    forks = "forkserver" in multiprocessing.get_all_start_methods() and not on_gpu
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(PRELOADED)
    out.mkdir(parents=True, exist_ok=True)
    begun, ended = time.monotonic(), itertools.count(1)
    needed, lock = least(arms), threading.Lock()
    started: set[tuple[str, float, int]] = set()

    def left(done: int) -> float:
        """Seconds, as long as the arms so far on average; the bound holds for those that are not needed."""
        spent = time.monotonic() - begun
        each, until = spent / done, float("inf") if seconds is None else seconds - spent
        return min(each * (len(arms) - done), max(each * (sum(_pair(a) in needed for a in arms) - done), until))

    def run(arm: Arm) -> dict[str, Any] | None:
        with lock:
            late = seconds is not None and time.monotonic() - begun > seconds
            if late and _pair(arm) not in started | needed:
                return None
            started.add(_pair(arm))
        path = out / f"{arm.name}.json"
        path.unlink(missing_ok=True)
        process = context.Process(target=_write_result, args=(arm, path, data))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"{arm.name}: its process ended with {process.exitcode}")
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        done = next(ended)
        rest = duration(left(done))
        say(f"{done} of {len(arms)}, about {rest} left; {arm.name}: last loss {result['losses'][-1]:.4f}")
        return result

    with ThreadPoolExecutor(jobs or (1 if on_gpu else os.cpu_count() or 1)) as pool:
        order = sorted(arms, key=lambda arm: _pair(arm) not in needed)
        found = dict(zip(order, pool.map(run, order), strict=True))
    return [result for arm in arms if (result := found[arm]) is not None]


# ------------------------------------------------------------------------------------------------------------ results


def write_curves(results: list[dict[str, Any]], path: Path) -> None:
    """A column an arm, a row a step."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *(r["name"] for r in results)])
        for step, losses in enumerate(zip(*(r["losses"] for r in results), strict=True), start=1):
            writer.writerow([step, *(f"{loss:.7g}" for loss in losses)])


def write_verdicts(verdicts: list[Verdict], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Verdict)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(verdict) for verdict in verdicts)


def plot(results: list[dict[str, Any]], path: Path, where: str) -> None:
    """Three rows a task: the smoothed curves with dropout, their difference in its allowed band, and the relative
    difference without dropout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = [task for task in arms_.TASKS if any(r["task"] == task for r in results)]
    figure, axes = plt.subplots(
        3,
        len(tasks),
        figsize=(6 * len(tasks), 8),
        sharex=True,
        squeeze=False,
        height_ratios=(3, 1.6, 1.6),
        layout="constrained",
    )
    figure.suptitle(f"Training with and without fasttx.patch; {where}")
    for column, task in enumerate(tasks):
        curves, difference, exact = axes[:, column]
        found = [r for r in results if r["task"] == task]
        noisy = {
            kind: [r["losses"] for r in found if r["dropout"] and r["patched"] == (kind == "patched")]
            for kind in COLOURS
        }
        steps = range(criteria_.WINDOW, len(noisy["plain"][0]) + 1)
        for kind, style in (("plain", {"linewidth": 3, "alpha": 0.6}), ("patched", {"linewidth": 1.1})):
            for i, losses in enumerate(noisy[kind]):
                label = {"plain": "unpatched", "patched": "patched"}[kind] if i == 0 else None
                curves.plot(steps, criteria_.smoothed(losses), color=COLOURS[kind], label=label, **style)
        seeds = len(noisy["plain"])
        curves.set_title(f"{task}: dropout 0.1, {seeds} seeds each, means of {criteria_.WINDOW} steps", fontsize=10)
        curves.legend()
        result = criteria_.compare(noisy["plain"], noisy["patched"])
        band = criteria_.FACTOR * result.error
        difference.fill_between(steps, -band, band, color=COLOURS["plain"], alpha=0.3, label="allowed")
        difference.plot(steps, result.gap, color=COLOURS["patched"], label="patched less unpatched, of the means")
        difference.set_ylim(-1.1 * band.max(), 1.7 * band.max())
        difference.legend(loc="upper left", fontsize=8, ncols=2)
        plain, patched = (
            next(r["losses"] for r in found if not r["dropout"] and r["patched"] is kind) for kind in (False, True)
        )
        gaps = [max(abs(a - b) / abs(a), LEAST_DRAWN) for a, b in zip(plain, patched, strict=True)]
        label = f"without dropout: |difference| / loss (0 as {LEAST_DRAWN:.0e})"
        exact.semilogy(range(1, len(gaps) + 1), gaps, ".", markersize=3, color=COLOURS["patched"], label=label)
        exact.hlines(criteria_.EXACT, 1, criteria_.EXACT_STEPS, color=COLOURS["plain"], linewidth=3, label="allowed")
        exact.set_ylim(LEAST_DRAWN / 3, 100 * max(criteria_.EXACT, *gaps))
        exact.legend(loc="upper left", fontsize=8, ncols=2)
        exact.set_xlabel("step")
    axes[0, 0].set_ylabel("training loss")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("convergence-out"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="of the dropout masks")
    parser.add_argument("--tasks", nargs="+", choices=arms_.TASKS, default=arms_.TASKS)
    parser.add_argument("--data", type=Path, default=TEXTS, help="directory of train.txt and dev.txt")
    parser.add_argument("--jobs", type=int, default=0, help="arms at once; 0: one a core, on a GPU one")
    parser.add_argument("--fault", choices=("", *arms_.FAULTS), default="", help="break the patched arms")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="then fewer seeds; two run in any case")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds: got {options.seconds:g}; allowed are numbers above 0")
    if options.steps < criteria_.LEAST_STEPS:
        parser.error(f"--steps: got {options.steps}; allowed are ints from {criteria_.LEAST_STEPS}")
    if len(set(options.seeds)) < 2:
        parser.error(f"--seeds: got {options.seeds}; allowed are at least two, as their spread is the noise")
    arms = planned(options.tasks, options.seeds, options.steps, options.fault)
    bound = f"no further seed begins after {duration(options.seconds)} (--seconds)"
    print(f"training {len(arms)} models on {options.data}; {bound}", flush=True)
    print("the first line comes when the first of them is done", flush=True)
    results = run_arms(arms, options.out, options.data, options.jobs, seconds=options.seconds)
    write_curves(results, options.out / "curves.csv")
    verdicts = criteria_.judge(results)
    write_verdicts(verdicts, options.out / "verdicts.csv")
    machine = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    where = machine["device"] if machine["device"] != "cpu" else machine["cpu"]
    plot(results, options.out / "convergence.png", f"{where}, torch {torch.__version__}")
    for verdict in verdicts:
        mark = "ok" if verdict.ok else "FAILED"
        print(f"{mark:7} {verdict.task}: {verdict.criterion}: {verdict.found} (allowed: {verdict.allowed})")
    if len(results) < len(arms):
        print(f"Time was short: {len(results)} of {len(arms)} models. --seconds gives it more.")
    return int(not all(verdict.ok for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
