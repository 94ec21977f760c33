"""BERT and MiniLM, training step and inference: fasttx beside transformers' attentions and torch.compile.

    python -m bench.model [--out FILE] [--target D1 D2] [--device cpu] [--quick]
    python -m bench.model --model bert-base minilm --seqlen 128 512 --lengths full wikipedia [--task training]

Random weights, bf16 on a GPU, dropout 0.1 in training as shipped, lengths by name (bench/lengths.py); a batch is padded
to its longest row, and only real tokens count in tokens/s.  What an arm gives is compared with a higher precision
before it is timed: hidden states, or all gradients of a step without dropout.  ``ratio`` is an arm's time over
fasttx's, by medians on a GPU and by first quartiles on a CPU; ``ratio_of_padding`` that over padded / real tokens.
``training`` is a masked language model with AdamW, the other two tasks are the encoder alone.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .arms import ARMS, Arm
from .contenders import Batch, Judge, build, config_of, loss_of, make_arm, missing
from .environment import device_of
from .footprint import held_bytes, launches, peak_mib
from .model_cases import (
    CASES,
    CPU_CASES,
    INFERENCE,
    QUICK_CASES,
    REHEARSAL_CASES,
    TRAINING,
    ModelCase,
    make_batch,
    select,
)
from .options import parser_of
from .progress import Watch, bound_of, unwatched, watcher
from .progress import deadline as deadline_in
from .settings import Settings, one_line
from .table import write
from .timer import Call, Timing, interleaved

COLUMNS = (
    *(
        "comparison",
        "target",
        "task",
        "model",
        "lengths",
        "batch",
        "seqlen",
        "real",
        "device",
        "dtype",
        "arm",
        "status",
    ),
    *("median_ms", "low_ms", "high_ms", "wall_ms", "tokens_per_s", "sequences_per_s", "ratio", "ratio_of_padding"),
    *("peak_MiB", "launches", "error", "allowed"),
)
MEANS = {TRAINING: "training of a masked language model"}
"""What a task is, where its name does not say so."""


def make_call(
    task: str, model: nn.Module, batch: Batch, update: bool = True
) -> tuple[Call, torch.optim.Optimizer | None]:
    """One step of `task`, and the optimizer that it drives; without `update` the weights stay."""
    model.train(task != INFERENCE)
    if task == INFERENCE:

        def infer(_: int) -> None:
            with torch.no_grad():
                model(**batch)

        return infer, None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True) if update and task == TRAINING else None

    def step(_: int) -> None:
        loss_of(model, batch).backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step, optimizer


def _status(arm: Arm, settings: Settings) -> str:
    """Why an arm is not even tried, or ""."""
    return missing(arm, settings.device) or ("not run: time budget" if settings.late(bool(arm.mode)) else "")


def compare(case: ModelCase, task: str, arms: Sequence[Arm], settings: Settings) -> list[dict[str, Any]]:
    """One row an arm. An arm that fails or is inexact is a row without times; the others are still compared."""
    device, config = settings.device, config_of(case.model, case.layers)
    batch, lengths = make_batch(case, task, config.vocab_size, device)
    padded = batch["attention_mask"].numel()
    base = {
        "target": case.target,
        "task": task,
        "lengths": case.lengths,
        "batch": case.batch,
        "real": sum(lengths) / padded,
        "model": case.model + (f", {case.layers} layers" if case.layers else ""),
        "seqlen": padded // case.batch,
        "device": settings.where,
        "dtype": str(settings.dtype).removeprefix("torch."),
    }
    rows = {arm.name: {**base, "arm": arm.name, "status": _status(arm, settings)} for arm in arms}
    if all(row["status"] for row in rows.values()):
        return list(rows.values())
    plain = build(config, "mlm" if task == TRAINING else "encoder", device, settings.dtype)
    judge = Judge(plain, batch, task != INFERENCE, plain)
    calls: dict[str, Call] = {}
    held: dict[str, int] = {}
    for arm in arms:
        row = rows[arm.name]
        row["status"] = row["status"] or _status(arm, settings)
        if row["status"]:
            continue
        try:
            model = make_arm(arm, plain, settings.unpad, settings.backend)
            known = {"seq_lens": lengths} if arm.lengths_known else {}
            if arm.mode and arm.lengths_known:  # other lengths first: the second ones make the graph a dynamic one
                other, others = make_batch(case, task, config.vocab_size, device, seed=1)
                make_call(task, model, other | {"seq_lens": others}, update=False)[0](0)
            if arm.patched or not arm.mode:  # a peer is not compiled once more to be judged
                row["error"], row["allowed"] = judge.compare(model, **known)
                if arm.patched and not row["error"] <= row["allowed"]:
                    row["status"] = "wrong"
                    continue
            call, optimizer = make_call(task, model, batch | known)
            call(0)  # compiles here, where a failure is this arm's alone
            held[arm.name] = held_bytes(model, optimizer)
            calls[arm.name] = call
        except Exception as problem:
            row["status"] = one_line(problem)
    del judge
    try:
        timings = (
            interleaved(calls, device, rounds=settings.rounds, batch_ms=1.0, seconds=settings.left()) if calls else {}
        )
    except Exception as problem:  # together they may not fit
        timings = {}
        for name in calls:
            rows[name]["status"] = f"while timed: {one_line(problem)}"
    for name, timing in timings.items():
        rows[name] |= _figures(timing, sum(lengths), case.batch)
        try:
            rows[name]["peak_MiB"] = peak_mib(calls[name], device, held[name])
            rows[name]["launches"] = launches(calls[name], device)
        except Exception as problem:  # a profiler that cannot start; the times stand
            rows[name]["launches"] = one_line(problem)
    _ratios(rows, "low_ms" if device.type == "cpu" else "median_ms")
    return list(rows.values())


def _figures(timing: Timing, tokens: int, sequences: int) -> dict[str, Any]:
    return {
        "status": "ok",
        "median_ms": timing.median,
        "low_ms": timing.low,
        "high_ms": timing.high,
        "wall_ms": timing.wall,
        "tokens_per_s": tokens / timing.median * 1e3,
        "sequences_per_s": sequences / timing.median * 1e3,
    }


def _ratios(rows: dict[str, dict[str, Any]], by: str) -> None:
    fasttx_time = rows.get(ARMS[0].name, {}).get(by)
    for row in rows.values():
        if fasttx_time is not None and by in row:
            row["ratio"] = row[by] / fasttx_time
            row["ratio_of_padding"] = row["ratio"] * row["real"]


# ------------------------------------------------------------------------------------------------------------- run


def run(
    device: torch.device,
    out: Path,
    *,
    cases: Sequence[ModelCase] | None = None,
    arms: Sequence[Arm] = ARMS,
    quick: bool = False,
    rehearsal: bool = False,
    deadline: float | None = None,
    say: Callable[[str], None] = print,
    watch: Watch = unwatched,
) -> list[dict[str, Any]]:
    """Makes all comparisons and writes `out` after each.

    The first case and those that answer a target lead; of each, what runs eagerly goes first, and compiled arms
    follow, beside fasttx and sdpa once more, as comparisons of their own.

    Args:
        device, out: where it runs, and the table.
        cases: by default those of the device.
        arms: see :data:`bench.arms.ARMS`.
        quick: one thread, two layers, few rounds; fasttx and sdpa alone.
        rehearsal: tiny models and compilation without code: no figures.
        deadline: of `time.monotonic`; what has not begun by then is a row that says so.
    """
    on_gpu = device.type == "cuda"
    settings = Settings.of(device, 2 if rehearsal else 3 if quick else 9, rehearsal, deadline)
    if cases is None:
        cases = REHEARSAL_CASES if rehearsal else QUICK_CASES if quick else CASES if on_gpu else CPU_CASES
    eager = [arm for arm in arms if not arm.mode and not (quick and arm.attention != "sdpa")]
    compiled = [] if quick else [arm for arm in arms if arm.mode]
    if compiled:
        compiled = [arm for arm in ARMS[:2] if arm in arms] + compiled
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if quick else threads)
    rows: list[dict[str, Any]] = []
    leading = [case for i, case in enumerate(cases) if i == 0 or case.target]
    plan = [
        # max-autotune takes minutes to compile, and is asked for where nothing is padded
        ([arm for arm in group if arm.mode != "max-autotune" or case.lengths == "full"], case, task)
        for tier in (leading, [case for case in cases if case not in leading])
        for group in (eager, compiled)
        if group
        for case in tier
        for task in case.tasks
    ]
    try:
        for number, (group, case, task) in enumerate(watch(plan, name=lambda each: _named(each[1], each[2]))):
            try:
                new = compare(case, task, group, settings)
            except Exception as problem:  # the batch or the reference: this comparison alone is lost
                base = {"target": case.target, "task": task, "model": case.model, "lengths": case.lengths}
                new = [{**base, "arm": arm.name, "status": one_line(problem)} for arm in group]
            rows += [{"comparison": number, **row} for row in new]
            write(rows, COLUMNS, out)
            say("\n".join([_named(case, task), *_lines(new)]))
            torch._dynamo.reset()
            gc.collect()  # models and their hooks refer to each other, and hold the device's memory
    finally:
        torch.set_num_threads(threads)
    return rows


def failed(row: dict[str, Any]) -> bool:
    """Whether one of our arms was tried and gave no figure."""
    return "fasttx" in row["arm"] and row["status"] != "ok" and not row["status"].startswith("not ")


def _named(case: ModelCase, task: str) -> str:
    layers = f" ({case.layers} layers)" if case.layers else ""
    return f"{case.model}{layers}, {MEANS.get(task, task)}, {case.batch} x {case.seqlen}, {case.lengths}"


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each arm, or one for all that have the same reason to have no figure."""
    alike = {row["status"] for row in rows}
    if len(alike) == 1 and alike != {"ok"}:
        return [f"  {alike.pop()}"]
    return [f"  {_line(row)}" for row in rows]


def _line(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['arm']}: {row['status']}"
    return f"{row['arm']} {row['median_ms']:.1f} ms" + (f" ({row['ratio']:.2f}x)" if "ratio" in row else "")


def main(arguments: list[str] | None = None, watch: Watch | None = None) -> int:
    parser = parser_of("model")
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    arms = [arm for arm in ARMS if not options.arm or arm.name in options.arm]
    cases = select(
        device,
        targets=options.target,
        models=options.model,
        seqlens=options.seqlen,
        lengths=options.lengths,
        tasks=options.task,
        batch=options.batch,
    )
    bound = bound_of(parser, options)
    rows = run(
        device,
        options.out,
        cases=cases,
        arms=arms,
        quick=options.quick,
        rehearsal=options.tiny,
        deadline=deadline_in(bound),
        watch=watch or watcher("bench model"),
    )
    return int(any(map(failed, rows)))


if __name__ == "__main__":
    sys.exit(main())
