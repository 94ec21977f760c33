"""A whole inference as a CUDA graph (E2, E3), and what the host pays for a call of each op."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from fasttx.ops import OPS
from fasttx.ops.cases import case as smallest

from .. import host
from ..captured import captured
from ..contenders import build, config_of, hidden_states, make_arm
from ..model_cases import INFERENCE, ModelCase, make_batch
from ..op_case import OpCase
from ..timer import Call, interleaved
from .item import Context, Item, Line
from .launch import launch_case
from .step import BY_NAME, settings_of, sized

CASES = {
    "one request of 128 tokens": (ModelCase("bert-base", 1, 128, "full", (INFERENCE,), "E3"), "8 x for a graph, E3"),
    "128 x 128": (ModelCase("bert-base", 128, 128, "full", (INFERENCE,), "E2"), "even: the device decides"),
}


def inference(case: ModelCase, expected: str, context: Context) -> Iterator[Line]:
    case, settings, device = sized(case, context), settings_of(context), context.device
    config = config_of(case.model, case.layers)
    batch, _ = make_batch(case, INFERENCE, config.vocab_size, device)
    plain = build(config, "encoder", device, settings.dtype).eval()
    patched = make_arm(BY_NAME["fasttx"], plain, False, settings.backend).eval()
    if context.dry:
        hidden_states(patched, batch)
        return
    found: dict[torch.nn.Module, torch.Tensor] = {}

    def step(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            found[model] = model(**batch).last_hidden_state
        return found[model]

    models = {"fasttx": patched, "sdpa": plain}
    calls: dict[str, Call] = {name: lambda _, model=model: step(model) for name, model in models.items()}
    eager = step(patched)
    for name, model in models.items():
        try:
            calls[f"{name} as a graph"] = captured(partial(step, model), device)
        except Exception as problem:  # a model that waits for the device: the others are timed all the same
            text = f"{name} cannot be captured: {(str(problem).strip().splitlines() or [''])[0][:200]}"
            yield {"text": text, "ok": name != "fasttx", "arm": name}
    if "fasttx as a graph" in calls:
        calls["fasttx as a graph"](0)
        same = torch.equal(eager, found[patched])  # no dropout, no atomics: nothing may move
        yield {"text": f"the graph gives {'the same bits' if same else 'OTHER BITS'}", "ok": same}
    times = interleaved(calls, device, rounds=2 if context.rehearsal else 15, batch_ms=2.0, seconds=6.0)
    for name, t in times.items():
        text = f"{name}: {t.median * 1e3:.0f} us on the device, {t.wall * 1e3:.0f} us with the host"
        line = {"text": text, "arm": name, "median_ms": t.median, "wall_ms": t.wall, "key": True}
        yield line | ({"expected": expected} if name == "fasttx as a graph" else {})


def host_costs(context: Context) -> Iterator[Line]:
    """Microseconds of the host a call of an op."""
    if context.dry:
        for op in OPS.values():
            launch_case(op, OpCase(list(smallest(op, "smallest", context.device, torch.float32)), {}))
        return
    for row in host.op_rows(context.device, 2 if context.rehearsal else 31):
        if "op, " in row["part"] and "us" in row:
            yield {"text": f"{row['what']}, {row['part']}: {row['us']:.1f} us", "us": row["us"], "what": row["what"]}
    yield {"text": "all ops", "expected": "15 to 25 us a forward, 10 to 21 of them Triton's launch"}


def items(context: Context) -> list[Item]:
    found = [Item(name, partial(inference, case, expected)) for name, (case, expected) in CASES.items()]
    return [*found, Item("host cost of the ops", host_costs)]
