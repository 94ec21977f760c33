"""The user's own model on the user's own texts: what fasttx brings, and what to call.

    python -m fasttx bench own DIR_OR_NAME --texts FILE [--task TASK] [--html FILE]

The patched model is verified on the first texts (fasttx.verify); a wrong one gets no times. Then every arm runs through
all batches in turn, in the order of the file, tokenised beforehand; the time is the median of the rounds, the host's
share included. With one thread on a CPU it is the processor's time, of which other work is no part. An arm's
``difference`` is that of its answers from those of the unpatched model, over the largest of these.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fasttx
from fasttx.models import layout
from fasttx.models.diagnostics.batch import longest

from . import cores
from .environment import describe, device_of
from .options import parser_of
from .own_arms import CAPTURED, FASTTX, PLAIN, Arm, Run, arms_of, ready
from .own_model import TRAINS, Batch, InputError, Texts, batches_of, load, read_texts, real_share
from .progress import Watch, bound_of, unwatched, watcher
from .progress import deadline as deadline_in
from .settings import Settings, one_line
from .table import write
from .timer import interleaved

COLUMNS = (
    *("model", "task", "device", "dtype", "texts", "batch", "longest", "real", "arm"),
    *("status", "ms", "texts_per_s", "gain", "difference"),
)
SIZES = {"embed": (1, 8, 32), "classify": (1, 8, 32), "train": (16,), "fine-tune": (16,)}
"""Texts a batch where none are asked for."""
WORTH = 1.05
"""A gain below it is called none: two runs of one program differ by as much."""
BUSY = 0.3
"""Cores that other work may take while something is measured on a CPU."""
CALLS = {FASTTX: "fasttx.patch(model)", CAPTURED: "fasttx.capture(model)"}
"""What makes a model run so; the first is recommended where the other is no faster."""
VERIFIED = 8
"""Texts that the patched model is verified on."""


@dataclass
class Own:
    """What was measured; ``print`` it. `alone`: times are those of one thread, without what other work took."""

    model: str
    task: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    verified: str = ""
    ok: bool = True
    machine: dict[str, str] = field(default_factory=dict)
    busy: float = 0.0
    alone: bool = False

    def gain(self, size: int) -> float | None:
        """How much faster the patched model is at this size of batch."""
        return next((r.get("gain") for r in self.rows if r["arm"] == FASTTX and r["batch"] == size), None)

    @property
    def sentence(self) -> str:
        """What to call, and what it brings here."""
        found = self._sentence()
        if self.busy > BUSY and self.alone:
            found += f" Other work took {self.busy:.1f} cores; times are what the processor spent on this alone."
        elif self.busy > BUSY:
            found += f" But other work took {self.busy:.1f} cores: the times mean little. Measure again without it."
        return found

    def _sentence(self) -> str:
        if not self.ok:
            return f"Do not patch this model: {self.verified}. Please report it, with `python -m fasttx doctor --json`."
        gains: dict[int, float] = {}
        arms: dict[int, str] = {}
        for r in self.rows:
            size, gain = r["batch"], r.get("gain")
            if r["arm"] not in CALLS or gain is None:
                continue
            if r["arm"] == FASTTX or gain > gains.get(size, 1.0) * WORTH:
                gains[size], arms[size] = gain, r["arm"]
        if not gains:
            why = next((r["status"] for r in self.rows if r["arm"] == FASTTX), "nothing was measured")
            return f"Nothing can be said of fasttx here: {why}."
        size = max(gains, key=lambda size: gains[size])
        rows = [r for r in self.rows if r["batch"] == size]
        real, device = rows[0]["real"], rows[0]["device"]
        if gains[size] < WORTH:
            span = dict.fromkeys(f"{gain:.2f}" for gain in (min(gains.values()), gains[size]))
            found = f"Leave this model as it is: fasttx brings nothing here ({' to '.join(span)} x)."
            if device == "cpu":
                found += f" On a CPU it skips padding: here {1 - real:.0%} of the tokens, in batches of {size}."
            return found
        what = "trains" if self.task in TRAINS else "answers"
        found = (
            f"Call {CALLS[arms[size]]} after loading: in batches of {size} ({real:.0%} of the tokens are real) it "
            f"{what} {gains[size]:.2f} x as fast, and {self.verified}."
        )
        best = max((r for r in rows if r.get("gain") is not None), key=lambda r: r["gain"])
        if best["gain"] > gains[size] * WORTH:
            found += f" {best['arm']} is faster still: {best['gain']:.2f} x."
        return found

    def __str__(self) -> str:
        head = f"fasttx bench own: {self.model}, {self.task}, {self.rows[0]['texts'] if self.rows else 0} texts"
        lines = [head]
        for size in dict.fromkeys(row["batch"] for row in self.rows):
            rows = [row for row in self.rows if row["batch"] == size]
            lines.append(f"batches of {size}, {rows[0]['real']:.0%} of the tokens real")
            lines += [f"  {line}" for line in layout.table(HEADER, [cells(row) for row in rows])]
        return "\n".join([*lines, "", *layout.wrapped(self.sentence, "")])


HEADER = ["", f"{'ms':>9}", f"{'texts/s':>8}", f"{'gain':>6}", "difference"]


def cells(row: dict[str, Any]) -> list[str]:
    """A row as it is printed."""
    if row["status"] != "ok":
        return [row["arm"], "", "", "", row["status"]]
    difference = "" if row.get("difference") is None else f"{row['difference']:.1e}"
    figures = [f"{row['ms']:9.1f}", f"{row['texts_per_s']:8.1f}", f"{row['gain']:5.2f}x" if "gain" in row else ""]
    return [row["arm"], *figures, difference]


# ------------------------------------------------------------------------------------------------------- measuring


def _verified(name: str, model: nn.Module, batch: Batch, settings: Settings) -> tuple[bool, str]:
    """Whether a patched copy is right, and that in words."""
    patched = copy.deepcopy(model)
    try:
        fasttx.patch(patched, unpad=settings.unpad, strict=True)
    except ValueError as problem:
        raise InputError(f"MODEL: got {name}; allowed is a model of fasttx's families: {problem}") from None
    found = fasttx.verify(patched, batch)
    if found.ok:
        what = "outputs, loss and gradients agree" if "labels" in batch else "the results agree"
        return True, f"{what} with {found.reference}"
    wrong = [row for row in found.rows if not row.ok]
    worst = max(wrong, key=lambda row: row.error / (row.allowed or 1e-300))
    return False, f"{worst.kind} {worst.name} is off by {worst.error:.1e}, {worst.allowed:.1e} are allowed"


def _compare(
    runs: dict[str, Run | str],
    batches: list[Batch],
    base: dict[str, Any],
    settings: Settings,
    trains: bool,
    alone: bool,
) -> list[dict[str, Any]]:
    """A row an arm, for one size of batches."""
    count = sum(len(batch["input_ids"]) for batch in batches)
    rows = {name: {**base, "arm": name, "status": arm if isinstance(arm, str) else ""} for name, arm in runs.items()}
    good: dict[str, Run] = {}
    answers: dict[str, torch.Tensor] = {}
    for name, arm in runs.items():
        if isinstance(arm, str):
            continue
        try:
            found = [arm(batch) for batch in batches]
            good[name] = arm
            if not trains:
                answers[name] = torch.cat(found)
        except Exception as problem:  # one arm that fails is a row
            rows[name]["status"] = one_line(problem)

    def through(arm: Run) -> Callable[[int], None]:
        def all_batches(_: int) -> None:
            for batch in batches:
                arm(batch)

        return all_batches

    gc.collect()
    times = interleaved(
        {name: through(arm) for name, arm in good.items()},
        settings.device,
        rounds=settings.rounds,
        batch_ms=1.0,
        seconds=settings.left(),
        clock=time.process_time if alone else time.perf_counter,
    )
    for name, timing in times.items():
        rows[name] |= {"status": "ok", "ms": timing.wall, "texts_per_s": count / timing.wall * 1e3}
        if PLAIN in times:
            rows[name]["gain"] = times[PLAIN].wall / timing.wall
        if PLAIN in answers and name != PLAIN and name in answers:
            plain = answers[PLAIN]
            rows[name]["difference"] = float((answers[name] - plain).abs().max() / plain.abs().max())
    return list(rows.values())


def _step(step: Arm | int) -> str:
    return f"preparing {step.name}" if isinstance(step, Arm) else f"batches of {step}"


def run(
    name: str,
    texts: Texts,
    device: torch.device,
    out: Path,
    *,
    task: str | None = None,
    sizes: tuple[int, ...] = (),
    max_length: int = 512,
    pad: str = "longest",
    int8: bool = False,
    quick: bool = False,
    compilers: bool = True,
    seconds: float | None = None,
    watch: Watch = unwatched,
) -> Own:
    """Measures, and writes `out`. Nothing new begins `seconds` after the model is loaded and verified.

    Raises:
        InputError: the model cannot be loaded, cannot do this task, or is none that fasttx patches.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings = Settings.of(device, 3 if quick else 7, False, None)
    model, tokenizer, task = load(name, task, settings.dtype, texts.labels)
    model = model.to(device)
    most = longest(model, min(max_length, tokenizer.model_max_length))
    found = Own(name, task, machine=describe(device))
    kind = settings.where if device.type == "cuda" else "cpu"
    base = {"model": name, "task": task, "device": kind, "dtype": str(settings.dtype).removeprefix("torch.")}
    first = Texts(texts.lines[:VERIFIED], texts.labels and texts.labels[:VERIFIED])
    sample = batches_of(first, model, tokenizer, VERIFIED, most, task, device, pad)[0]
    found.ok, found.verified = _verified(name, model, sample, settings)
    settings = dataclasses.replace(settings, deadline=deadline_in(seconds))
    arms = arms_of(model, task, sample, settings, int8=int8, compilers=compilers and not quick)
    runs: dict[str, Run | str] = {}
    found.alone = device.type == "cpu" and torch.get_num_threads() == 1
    found.busy = cores.busy() if device.type == "cpu" else 0.0
    for step in watch([*arms, *(sizes or SIZES[task])], name=_step):
        if isinstance(step, Arm):
            wrong = step.patched and not found.ok
            runs[step.name] = f"wrong: {found.verified}" if wrong else ready(step, sample, settings)
            continue
        batches = batches_of(texts, model, tokenizer, step, most, task, device, pad)
        now = {**base, "texts": len(texts.lines), "batch": step, "real": real_share(batches)}
        now["longest"] = max(batch["input_ids"].shape[1] for batch in batches)
        if settings.late():
            found.rows += [{**now, "arm": name, "status": "not run: time budget"} for name in runs]
        else:
            found.rows += _compare(runs, batches, now, settings, task in TRAINS, found.alone)
        write(found.rows, COLUMNS, out)
    return found


def main(arguments: list[str] | None = None, watch: Watch | None = None) -> int:
    parser = parser_of("own")
    options = parser.parse_args(arguments)
    bound = bound_of(parser, options)
    most = min(options.most, 32) if options.quick else options.most
    try:
        found = run(
            options.model,
            read_texts(options.texts, most),
            device_of(options.device),
            options.out,
            task=options.task,
            sizes=tuple(options.batch or ()),
            max_length=options.max_length,
            pad=options.pad,
            int8=options.int8,
            quick=options.quick,
            compilers=not options.no_compilers,
            seconds=bound,
            watch=watch or watcher("bench own"),
        )
    except InputError as problem:
        parser.error(str(problem))
    print(found)
    if options.html is not None:
        from .own_page import page

        options.html.write_text(page(found), encoding="utf-8")
        print(f"written: {options.html}")
    return int(not found.ok)


if __name__ == "__main__":
    sys.exit(main())
