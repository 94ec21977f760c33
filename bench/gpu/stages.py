"""The stages of `make gpu-check`, by value, and the files that they write. The standard library alone."""

from __future__ import annotations

from dataclasses import dataclass

SECONDS = 330.0
"""Of one part, everything in it. Two parts and two starts fit into a quarter of an hour."""
MOST_FILES = 8


@dataclass(frozen=True)
class Stage:
    """One child, or several that share its items.

    Attributes:
        name: on each line.
        module: holds ``items(context)``.
        file: in OUT; stages may share one.
        seconds: after which the stage is killed, however much is left of the part.
        item_seconds: after which one item counts as hung, and the stage goes on behind it.
        workers: children, each with its share of the items.
        beside: runs together with the stage after it.
        compiles: whether `make gpu-prepare` compiles what it launches.
    """

    name: str
    module: str
    file: str
    seconds: float
    item_seconds: float = 30.0
    workers: int = 1
    beside: bool = False
    compiles: bool = True


PARTS: dict[str, tuple[Stage, ...]] = {
    "first": (
        Stage("environment", "bench.gpu.environment", "environment.jsonl", 40, compiles=False),
        Stage("tests", "bench.gpu.tests", "ops.jsonl", 75, 60, workers=3, beside=True, compiles=False),
        Stage("ops", "bench.gpu.ops", "ops.jsonl", 75, 20),
        Stage("sweep", "bench.gpu.sweep", "sweep.jsonl", 75, 20, workers=8),
        Stage("step", "bench.gpu.step", "step.jsonl", 75, 45),
        Stage("attention", "bench.gpu.attention", "kernels.jsonl", 120, 30),
    ),
    "second": (
        Stage("environment", "bench.gpu.environment", "environment.jsonl", 40, compiles=False),
        Stage("rows", "bench.gpu.rows", "kernels.jsonl", 75, 20),
        Stage("tiles", "bench.gpu.tiles", "tiles.jsonl", 80, 20),
        Stage("large", "bench.gpu.large", "step.jsonl", 90, 60),
        Stage("graphs", "bench.gpu.graphs", "step.jsonl", 45, 30),
        Stage("counters", "bench.gpu.counters", "counters.jsonl", 50, 45, compiles=False),
    ),
}
"""What is worth most first: a part that is cut off has done what stands above."""

LOG = "run.log"


def files(parts: tuple[str, ...] = tuple(PARTS)) -> set[str]:
    """Every file that these parts write."""
    return {stage.file for part in parts for stage in PARTS[part]} | {LOG}
