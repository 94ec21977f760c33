"""A BERT-base on real lengths: gradients of a training step beside float32, then steps and inference beside sdpa."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

import fasttx

from ..arms import ARMS, Arm
from ..contenders import Judge, build, config_of, gradient_error, gradients, make_arm
from ..model import compare, make_call
from ..model_cases import INFERENCE, REHEARSAL_CASES, TRAINING, ModelCase, make_batch
from ..settings import Settings
from .compiled import watching
from .item import Context, Item, Line

BY_NAME = {arm.name: arm for arm in ARMS}
EAGER = [BY_NAME[name] for name in ("fasttx", "sdpa", "fasttx, lengths known")]
WIKIPEDIA = ModelCase("bert-base", 32, 512, "wikipedia", (TRAINING,))
FULL = ModelCase("bert-base", 128, 128, "full", (INFERENCE,), "E2")


def settings_of(context: Context, rounds: int = 9) -> Settings:
    found = Settings.of(context.device, 1 if context.rehearsal else rounds, context.rehearsal, context.deadline)
    return dataclasses.replace(found, dtype=torch.bfloat16) if context.dry else found


def sized(case: ModelCase, context: Context) -> ModelCase:
    """A tiny model in a rehearsal; one layer where kernels are compiled only, as the others are like it."""
    if context.rehearsal:
        return dataclasses.replace(REHEARSAL_CASES[0], tasks=case.tasks)
    return dataclasses.replace(case, layers=1) if context.dry else case


def launch(case: ModelCase, task: str, arms: Sequence[Arm], context: Context) -> Iterator[Line]:
    """One step of each arm that is ours."""
    settings, case = settings_of(context), sized(case, context)
    config = config_of(case.model, case.layers)
    batch, lengths = make_batch(case, task, config.vocab_size, context.device)
    plain = build(config, "mlm" if task == TRAINING else "encoder", context.device, settings.dtype)
    for arm in arms:
        if arm.patched and not arm.mode:
            known: dict[str, Any] = {"seq_lens": lengths} if arm.lengths_known else {}
            model = make_arm(arm, plain, settings.unpad, settings.backend)
            make_call(task, model, batch | known, update=False)[0](0)
    yield from ()


def exact_gradients(context: Context) -> Iterator[Line]:
    """Every parameter's gradient, without dropout, beside the same weights in float32."""
    case = sized(WIKIPEDIA, context)
    config = config_of(case.model, case.layers)
    settings = settings_of(context)
    batch, lengths = make_batch(case, TRAINING, config.vocab_size, context.device)
    plain = build(config, "mlm", context.device, settings.dtype)
    model = make_arm(BY_NAME["fasttx, lengths known"], plain, settings.unpad, settings.backend)
    if context.dry:
        gradients(model, batch | {"seq_lens": lengths})
        return
    with watching() as seen:
        judge = Judge(plain, batch, True, plain)
        error, allowed = judge.compare(model, seq_lens=lengths)
    text = f"relative norm {error:.2e} of {allowed:.2e} allowed; {seen.misses} kernels compiled here"
    yield {"text": text, "ok": error <= allowed, "error": error, "allowed": allowed, "key": True}


def compared(
    case: ModelCase, task: str, arms: Sequence[Arm], expected: str, rounds: int, context: Context
) -> Iterator[Line]:
    """A line an arm, as bench.model measures them."""
    if context.dry:
        yield from launch(case, task, arms, context)
        return
    for row in compare(sized(case, context), task, arms, settings_of(context, rounds)):
        text = f"{row['arm']}: {row['status']}"
        if row["status"] == "ok":
            text += f", {row['median_ms']:.2f} ms (wall {row['wall_ms']:.2f})"
            text += f", {row['ratio']:.2f} x fasttx's" if "ratio" in row else ""
            text += f", {row['launches']} launches, {row['peak_MiB']:.0f} MiB" if row.get("launches") else ""
        ok = row["status"] == "ok" or "fasttx" not in row["arm"] or row["status"].startswith("not ")
        yield {"text": text, "ok": ok, "key": True, **row} | ({"expected": expected} if row["arm"] == "sdpa" else {})


def compiled_gradients(context: Context) -> Iterator[Line]:
    """torch.compile with lengths from the host gives every parameter the gradient that it has eagerly."""
    config = config_of("tiny", 2)
    case = ModelCase("tiny", 4, 24, "even", (TRAINING,), layers=2)
    batch, lengths = make_batch(case, TRAINING, config.vocab_size, context.device)
    batch |= {"seq_lens": lengths}
    model = build(config, "mlm", context.device, torch.float32)
    fasttx.patch(model, unpad=True)
    exact = gradients(model, batch)
    if context.dry:
        return
    model.compile(backend="aot_eager")
    found = gradients(model, batch)
    found = {name.removeprefix("_orig_mod."): gradient for name, gradient in found.items()}
    error = gradient_error(found, exact)
    lost = [name for name, gradient in exact.items() if bool(gradient.any()) and not bool(found[name].any())]
    text = f"relative norm of the difference {error:.1e}; {len(lost)} of {len(exact)} gradients are zero"
    yield {"text": text, "ok": error <= 1e-3 and not lost, "error": error, "key": True}


def items(context: Context) -> list[Item]:
    training = partial(compared, WIKIPEDIA, TRAINING, EAGER, "1.9 to 2.3 x fasttx's", 9)
    inference = partial(compared, FULL, INFERENCE, EAGER, "about even: nothing is padded, and the host decides", 9)
    return [
        Item("gradients", exact_gradients),
        Item("training", training),
        Item("inference", inference),
        Item("compiled gradients with lengths", compiled_gradients),
    ]
