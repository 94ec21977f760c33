"""`tune`: measures on request which way is the fastest that is right, and keeps it in the table of a device.

All of it happens in a child, which this process hands one item after another and reads lines from: a kernel that
crashes is left out, and what was measured is in the file already. So is what was measured before a run was cut off: the
next one goes on from there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..ops import OPS, tuned, verdicts
from ..ops.cases import like
from ..ops.forms import FORMS
from ..ops.regimes import dtype_of, regimes_of
from ..ops.tuned import Measured
from ..ops.verdicts import Verdict
from . import first_use, record
from .choosing import Times, choose
from .measurer import ITEM_S, Measurer

QUICK_S, WHOLE_S = 50.0, 570.0
"""Seconds for a run: what has not begun by then is measured by the next one."""
CRASHES = 3
"""Crashes of one item after which it is given up."""
DTYPES = {"cuda": (torch.bfloat16, torch.float32, torch.float16), "cpu": (torch.float32, torch.bfloat16)}
"""In which ops and forms are measured, the most used first."""

Step = Callable[[int, int, str, "Measured | str | None"], None]
"""Told of each item: its number, of how many, its name, and what was found: None when it begins, or why not."""


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        measured: in this run, by "name/dtype/regime".
        left: what was not measured, and why.
        nothing: ops and forms that have one way only on this device.
        reason: why nothing could be measured at all, or "".
    """

    measured: dict[str, Measured] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    nothing: list[str] = field(default_factory=list)
    reason: str = ""


def names() -> list[str]:
    """What can be asked for: ops and forms."""
    return [*OPS, *FORMS]


def wanted_names(only: Sequence[str]) -> list[str]:
    """Those that are meant: an op stands for its forms, too.

    Raises:
        ValueError: one of `only` is neither an op nor a form.
    """
    parts = {name.split(":")[0] for name in FORMS}
    for name in only:
        if name not in (*OPS, *FORMS, *parts):
            raise ValueError(f"--only: got {name!r}; allowed are {', '.join(sorted({*OPS, *FORMS, *parts}))}")
    return [name for name in names() if not only or name in only or name.split(":")[0] in only]


def plan(device: torch.device, only: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """What there is to measure on a device, the most telling first, and what has one way only there."""
    ranked: list[tuple[int, str]] = []
    nothing = []
    for name in wanted_names(only):
        found = list(_items(name, device))
        ranked += found
        nothing += [] if found else [name]
    ranked.sort(key=lambda each: each[0])  # stable: of one rank in the order of the tables
    return list(dict.fromkeys(item for _, item in ranked)), nothing


def _items(name: str, device: torch.device) -> Iterator[tuple[int, str]]:
    """The items of an op or form, each with how late it comes: other dtypes and other regimes come later."""
    for rank, dtype in enumerate(DTYPES.get(device.type, ())):
        if name in FORMS:
            form = FORMS[name]
            if device.type not in form.on or dtype not in form.dtypes:
                continue
            regimes = form.all()
        else:
            rows = first_use.candidates(name, device, dtype)
            if all(_has_failed(row, device) for row in rows):
                continue
            regimes, dtype = regimes_of(name).all(), dtype_of(*like(OPS[name], device, dtype))
        for position, regime in enumerate(regimes):
            yield position + 2 * rank, f"{name}/{str(dtype).removeprefix('torch.')}/{regime}"


def _has_failed(row: verdicts.Row, device: torch.device) -> bool:
    found = verdicts.known(device).get(str(row))
    return found is not None and found.failed


def why_not_now(device: torch.device) -> str | None:
    """Why nothing can be measured at this moment, or None."""
    if torch.are_deterministic_algorithms_enabled():
        return "torch.use_deterministic_algorithms is on: nothing is measured, an existing table is used"
    if torch.compiler.is_compiling() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return "a graph is being made"
    if not sys.executable or getattr(sys, "frozen", False):
        return "no program of Python is known"
    return None


def write(device: torch.device, found: Mapping[str, Measured]) -> bool:
    """Adds measurements to the table of a device; False where the folder cannot be written."""
    table = tuned.read(device) | dict(found)
    rows = {name: each._asdict() for name, each in sorted(table.items())}
    return record.replace(tuned.table_path(device), {"key": tuned.key(device), "measured": rows})


def tune(
    device: torch.device,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    anew: bool = False,
    step: Step = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Measures what is not in the table of a device yet, or was measured by a quick run only.

    Args:
        quick: fewer rounds, and at most :data:`QUICK_S` seconds.
        only: names of ops and forms; all if there is none.
        anew: what is in the table already is measured again.
        step: is told of each item.
        clock: the time in seconds.

    Raises:
        ValueError: `only` has an unknown name.
    """
    end = clock() + (QUICK_S if quick else WHOLE_S)
    items, nothing = plan(device, only)
    outcome = Outcome(nothing=nothing, reason=why_not_now(device) or "")
    if outcome.reason or not items:
        return outcome
    with record.lock(device, 0.0, file=tuned.table_path(device)) as alone:
        before = tuned.read(device)
        left = [item for item in items if anew or item not in before or (before[item].quick and not quick)]
        if not alone:
            outcome.reason = "another process is measuring on this kind of device"
        elif not write(device, {}):
            outcome.reason = f"{tuned.table_path(device).parent} cannot be written"
        if outcome.reason:
            return outcome
        child = Measurer(device, quick)
        try:
            for number, item in enumerate(left):
                if clock() >= end:
                    outcome.left |= dict.fromkeys(left[number:], "no time was left")
                    break
                step(number, len(left), item, None)
                found = _one(child, device, item, quick, lambda: min(ITEM_S, end - clock()))
                if isinstance(found, Measured):
                    outcome.measured[item] = found
                    write(device, {item: found})  # at once: this process may be stopped before the last
                else:
                    outcome.left[item] = found
                step(number, len(left), item, found)
        finally:
            child.stop()
            tuned.forget()
    return outcome


def _one(child: Measurer, device: torch.device, item: str, quick: bool, left: Callable[[], float]) -> Measured | str:
    """What is taken for an item, or why it was not measured. What crashes is left out, and the rest measured again."""
    without = _failed(device, item)
    for _ in range(CRASHES):
        answer = child.ask(item, without, left())
        if "found" in answer:
            _remember_wrong(device, item, answer["found"])
            return _chosen(answer["found"], quick)
        if "problem" in answer:
            return str(answer["problem"])
        if not answer.get("crashed"):
            return "it crashed outside of what is measured"
        without[answer["crashed"]] = f"crashed: {answer['how']}"
        _fail(device, item, answer["crashed"], Verdict("crashed", f"the process that measured it {answer['how']}"))
    return "; ".join(f"{way} {why}" for way, why in without.items())


def _failed(device: torch.device, item: str) -> dict[str, str]:
    """The backends that have failed their check, perhaps a moment ago and unknown to the child; and why."""
    name, dtype, _ = item.split("/", 2)
    found = verdicts.known(device)
    rows = {impl.backend: f"{name}/{impl.backend}/{dtype}" for impl in OPS[name].impls} if name in OPS else {}
    return {way: found[row].detail for way, row in rows.items() if row in found and found[row].failed}


def _chosen(found: Mapping[str, Any], quick: bool) -> Measured | str:
    times = {example: {way: Times(*each) for way, each in ways.items()} for example, ways in found["times"].items()}
    measured = choose(found["default"], found["own"], times, found["left_out"], quick)
    return measured or "; ".join(f"{way}: {why}" for way, why in found["left_out"].items()) or "nothing could run"


def _remember_wrong(device: torch.device, item: str, found: Mapping[str, Any]) -> None:
    for way in found["wrong"]:
        _fail(device, item, way, Verdict("wrong", f"{found['left_out'][way]} ({item.split('/', 2)[2]})"))


def _fail(device: torch.device, item: str, way: str, verdict: Verdict) -> None:
    """A kernel that fails here has failed its check: it is out of "auto" at every shape."""
    name, dtype, _ = item.split("/", 2)
    if name in OPS and any(impl.backend == way for impl in OPS[name].impls):
        found = {f"{name}/{way}/{dtype}": verdict}
        record.write(device, found)
        verdicts.add(device, found)
