"""When loss curves with and without the patch coincide.

Arms with dropout draw masks of their own, so that no two curves are equal; those without are deterministic up to the
order of sums. Hence two criteria. Without dropout, the losses of the same step must agree to numeric noise, for as long
as rounding has not yet grown. With dropout, curves are smoothed over a window, and the means over seeds may differ by
`FACTOR` standard errors of that difference, whose standard deviation comes from the unpatched seeds alone: a patched
arm that scatters cannot excuse itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW = 20
LEAST_STEPS = 200

FACTOR = 6.0
"""About 1 comparison in 100 of curves that differ in nothing but dropout's masks is beyond it: the maximum over a curve
of a ratio whose denominator comes from a few seeds has long tails (docs/convergence.md has the distribution)."""

EXACT_STEPS, EXACT = 100, 1e-4
"""A hundred times what rounding makes of the first steps, a twentieth of the least fault in `FAULTS`."""

LEAST_FALL = 5.0
ACCURACY_FACTOR, LEAST_SPREAD = 3.5, 0.02
"""As `FACTOR`, of one number a run; three seeds that agree by chance do not make dev.txt larger than it is."""


@dataclass(frozen=True)
class Verdict:
    """One criterion of one task: what was found, what is allowed, in words, and whether the one is within the other."""

    task: str
    criterion: str
    found: str
    allowed: str
    ok: bool


@dataclass(frozen=True)
class Comparison:
    """Smoothed curves of several seeds of two kinds of arms.

    Attributes:
        gap: the mean of the patched curves less that of the unpatched, after each window.
        error: the standard error of that difference, after each window.
        ratio: the largest abs(gap) / error.
        step: the last step of that window, from 1.
        fall: what the unpatched mean loses from the first window to the last, in standard deviations of a single curve.
    """

    gap: np.ndarray
    error: np.ndarray
    ratio: float
    step: int
    fall: float


def smoothed(curve: Sequence[float]) -> np.ndarray:
    """The mean of each `WINDOW` successive steps."""
    return np.convolve(np.asarray(curve, dtype=np.float64), np.ones(WINDOW) / WINDOW, "valid")


def _curves(name: str, curves: Sequence[Sequence[float]], least: int) -> np.ndarray:
    if len(curves) < least:
        raise ValueError(f"{name}: got {len(curves)} curves; allowed are at least {least}")
    lengths = {len(curve) for curve in curves}
    if len(lengths) > 1 or min(lengths) < LEAST_STEPS:
        raise ValueError(f"{name}: got curves of {sorted(lengths)} steps; allowed is one length from {LEAST_STEPS}")
    return np.asarray(curves, dtype=np.float64)


def compare(plain: Sequence[Sequence[float]], patched: Sequence[Sequence[float]]) -> Comparison:
    """Compares curves (seeds, steps) of unpatched and patched arms.

    The variance of a smoothed curve is that of the unpatched seeds around their mean, averaged over the whole curve
    where a step's own is smaller: three seeds alone make single steps look quiet by chance.

    Raises:
        ValueError: fewer than two unpatched curves or no patched one; curves shorter than `LEAST_STEPS`, or of
            different lengths; unpatched curves without any spread, which no noise can be read from.
    """
    a, b = _curves("plain", plain, 2), _curves("patched", patched, 1)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"patched: got {b.shape[1]} steps; allowed are those of the unpatched curves, {a.shape[1]}")
    if not np.isfinite(a).all():
        raise ValueError("plain: got a loss that is not finite; allowed are runs that converge")
    if (a == a[0]).all():
        raise ValueError("plain: got equal curves; allowed are seeds that differ, as their spread is the noise")
    a, b = (np.stack([smoothed(curve) for curve in curves]) for curves in (a, b))
    variance = a.var(axis=0, ddof=1)
    variance = np.maximum(variance, variance.mean())
    error = np.sqrt(variance * (1 / len(a) + 1 / len(b)))
    gap = b.mean(axis=0) - a.mean(axis=0)
    ratios = np.where(np.isfinite(gap), np.abs(gap) / error, math.inf)
    worst = int(ratios.argmax())
    mean = a.mean(axis=0)
    fall = float((mean[0] - mean[-1]) / math.sqrt(variance.max()))
    return Comparison(gap, error, float(ratios[worst]), worst + WINDOW, fall)


def largest_relative_gap(plain: Sequence[float], patched: Sequence[float]) -> float:
    """Of the first `EXACT_STEPS` steps of two curves that should be equal; infinite where a loss is not finite."""
    a, b = _curves("plain", [plain], 1)[0, :EXACT_STEPS], _curves("patched", [patched], 1)[0, :EXACT_STEPS]
    gaps = np.abs(a - b) / np.abs(a)
    return float(np.where(np.isfinite(gaps), gaps, math.inf).max())


# ------------------------------------------------------------------------------------------------------------- verdict


def judge(results: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Every criterion of every task in `results` of ``convergence_arms.train``.

    Raises:
        ValueError: arms are missing, or their curves cannot be compared (see :func:`compare`).
    """
    verdicts = []
    for task in dict.fromkeys(str(result["task"]) for result in results):
        found = [result for result in results if result["task"] == task]
        verdicts += [_same_start(task, found), _patched_path(task, found), *_losses(task, found)]
        if any(result["accuracy"] is not None for result in found):
            verdicts.append(_accuracy(task, found))
    return verdicts


def _same_start(task: str, found: list[dict[str, Any]]) -> Verdict:
    n = len({result["digest"] for result in found})
    return Verdict(task, "same initial weights and batches", f"{n} different", "1", n == 1)


def _patched_path(task: str, found: list[dict[str, Any]]) -> Verdict:
    """Patched arms ran on fasttx's attention, on real tokens and labelled rows; the others did not."""
    wrong = []
    for result in found:
        attention = sum(n for name, n in result["launches"].items() if name.startswith("attention_"))
        selects = result["patched"] and task == "pretraining"
        if (
            result["packed"] is not result["patched"]
            or ("real tokens only" in result["replaced"]) is not result["patched"]
            or ("labelled rows only" in result["replaced"]) is not selects
            or result["without_logits"] != (len(result["losses"]) if selects else 0)
            or (attention > 0) is not result["patched"]
        ):
            wrong.append(result["name"])
    return Verdict(task, "arms that took another path than theirs", ", ".join(wrong) or "none", "none", not wrong)


def _with_dropout(found: list[dict[str, Any]], patched: bool) -> list[dict[str, Any]]:
    return [result for result in found if result["dropout"] and result["patched"] is patched]


def _losses(task: str, found: list[dict[str, Any]]) -> list[Verdict]:
    exact = {result["patched"]: result["losses"] for result in found if not result["dropout"]}
    if len(exact) < 2:
        raise ValueError(f"{task}: got {len(exact)} kinds of arms without dropout; allowed are both")
    relative = largest_relative_gap(exact[False], exact[True])
    plain, patched = ([r["losses"] for r in _with_dropout(found, kind)] for kind in (False, True))
    noise = compare(plain, patched)
    at = f" (step {noise.step}, by {noise.gap[noise.step - WINDOW]:+.2g})"
    return [
        Verdict(
            task,
            f"without dropout, largest relative difference of the first {EXACT_STEPS} losses",
            f"{relative:.1e}",
            f"{EXACT:.0e}",
            relative <= EXACT,
        ),
        Verdict(
            task,
            f"largest gap between the means of {len(plain)} and {len(patched)} seeds, in standard errors",
            f"{noise.ratio:.2f}{at}",
            f"{FACTOR:g}",
            noise.ratio <= FACTOR,
        ),
        Verdict(
            task,
            "fall of the unpatched loss, in standard deviations of a curve",
            f"{noise.fall:.0f}",
            f"from {LEAST_FALL:g}",
            noise.fall >= LEAST_FALL,
        ),
    ]


def _accuracy(task: str, found: list[dict[str, Any]]) -> Verdict:
    plain, patched = ([r["accuracy"] for r in _with_dropout(found, kind)] for kind in (False, True))
    spread = max(float(np.std(plain, ddof=1)), LEAST_SPREAD)
    allowed = ACCURACY_FACTOR * spread * math.sqrt(1 / len(plain) + 1 / len(patched))
    gap = float(np.mean(patched) - np.mean(plain))
    return Verdict(
        task,
        "accuracy on dev.txt, mean of patched less unpatched",
        f"{gap:+.3f} ({np.mean(patched):.3f}, {np.mean(plain):.3f})",
        f"{allowed:.3f} either way",
        abs(gap) <= allowed,
    )
