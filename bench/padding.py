"""What padding removal gains: a patched BERT beside transformers' sdpa, by the share of real tokens in a batch.

    python -m bench.padding [--out FILE] [--quick]

Random weights; widths of a tiny model, MiniLM and BERT-base, two layers each, as every layer costs the same. Lengths
spread evenly around the wanted share; dropout 0.1 in training, as shipped. One thread on a CPU. ``unpad=True`` packs
whatever the gain, and shows where ``"auto"`` has to stay padded. The figure is the first quartile of interleaved calls.
sdpa runs twice, as two models: the ratio of its two times, "sdpa / again", is what a ratio means on this machine.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fasttx

from .environment import device_of
from .options import parser_of
from .progress import Watch, bound_of, unwatched, watcher
from .progress import deadline as deadline_in
from .table import write
from .timer import Call, interleaved

COLUMNS = (
    *("hidden", "batch", "seqlen", "real", "saved_work_a_layer", "task"),
    *("sdpa_ms", "again_ms", "auto_ms", "always_ms", "sdpa / again", "sdpa / auto", "sdpa / always"),
)
TASKS = ("inference", "forward and backward")
WIDTHS = ((32, 2), (128, 4), (384, 12), (768, 12))
SHAPES = ((2, 8, 0.8), (4, 16, 0.65), (8, 32, 0.5), (16, 128, 1.0), (16, 128, 0.55), (16, 128, 0.38))


def lengths(batch: int, seqlen: int, real: float) -> Tensor:
    """`batch` lengths with a mean of about real * seqlen, the longest of seqlen, the shortest as far below the mean."""
    low = max(2, round((2 * real - 1) * seqlen)) if real > 0.5 else 2
    found = torch.linspace(low, 2 * real * seqlen - low, batch).round().long().clamp(2, seqlen)
    found[-1] = seqlen
    return found


def _calls(arms: dict[str, nn.Module], inputs: dict[str, Tensor], training: bool) -> dict[str, Call]:
    def call(model: nn.Module) -> Callable[[int], object]:
        def step(_: int) -> None:
            if training:
                model(**inputs).last_hidden_state.sum().backward()
            else:
                with torch.no_grad():
                    model(**inputs)

        return step

    return {name: call(model.train(training)) for name, model in arms.items()}


def _arms(hidden: int, heads: int, device: torch.device) -> dict[str, nn.Module]:
    """Two layers of that width: sdpa twice, packed where it pays, and always packed."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        num_hidden_layers=2,
        vocab_size=99,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    arms: dict[str, nn.Module] = {"sdpa": BertModel(config).to(device)}
    arms["again"] = copy.deepcopy(arms["sdpa"])
    for name, unpad in (("auto", "auto"), ("always", True)):
        arms[name] = copy.deepcopy(arms["sdpa"])
        fasttx.patch(arms[name], unpad=unpad)
    return arms


def _row(
    width: tuple[int, int], shape: tuple[int, int, float], task: str, arms: dict[str, nn.Module], rounds: int
) -> dict[str, Any]:
    """One comparison; `arms` are models of that width."""
    (hidden, _), (batch, seqlen, real) = width, shape
    device = next(arms["sdpa"].parameters()).device
    each = lengths(batch, seqlen, real)
    mask = (torch.arange(seqlen) < each[:, None]).long().to(device)
    calls = _calls(arms, {"input_ids": mask * 7, "attention_mask": mask}, training=task == TASKS[1])
    timings = interleaved(calls, device, rounds=rounds, batch_ms=1.0, seconds=6.0)
    found = {name: t.low for name, t in timings.items()}
    row: dict[str, Any] = {"hidden": hidden, "batch": batch, "seqlen": seqlen}
    row |= {"real": float(each.sum()) / (batch * seqlen), "task": task}
    row["saved_work_a_layer"] = int((seqlen - each).sum()) * hidden * (12 * hidden + 4 * seqlen + 500)
    row |= {f"{name}_ms": ms for name, ms in found.items()}
    return row | {f"sdpa / {name}": found["sdpa"] / found[name] for name in ("again", "auto", "always")}


def _named(hidden: int, batch: int, seqlen: int, task: str) -> str:
    return f"width {hidden}, {batch} x {seqlen} tokens, {task}"


def _line(row: dict[str, Any]) -> str:
    named = _named(row["hidden"], row["batch"], row["seqlen"], row["task"])
    ratios = ", ".join(f"{name} {row[f'sdpa / {name}']:.2f}x" for name in ("auto", "always", "again"))
    return f"{named}, {row['real']:.0%} real\n  sdpa / {ratios}"


def run(
    device: torch.device,
    out: Path,
    *,
    quick: bool = False,
    deadline: float | None = None,
    say: Callable[[str], None] = print,
    watch: Watch = unwatched,
) -> list[Any]:
    """Measures every width and shape, writes `out`, and returns its rows; `quick` takes two of each.

    What has not begun by `deadline` (time.monotonic) is left out, and counted.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    widths, shapes = (WIDTHS[::3], SHAPES[:2]) if quick else (WIDTHS, SHAPES)
    plan = [(width, shape, task) for width in widths for shape in shapes for task in TASKS]
    rows: list[dict[str, Any]] = []
    arms: dict[str, nn.Module] = {}
    of, left = None, 0
    try:
        for width, shape, task in watch(plan, name=lambda each: _named(each[0][0], *each[1][:2], each[2])):
            if deadline is not None and time.monotonic() > deadline:
                left += 1
                continue
            if width != of:
                arms, of = _arms(*width, device), width
            rows.append(_row(width, shape, task, arms, 2 if quick else 150))
            write(rows, COLUMNS, out)
            say(_line(rows[-1]))
    finally:
        torch.set_num_threads(threads)
    if left:
        say(f"not run: time budget, {left} of {len(plan)} rows")
    return rows


def main(arguments: list[str] | None = None, watch: Watch | None = None) -> int:
    parser = parser_of("padding")
    options = parser.parse_args(arguments)
    bound, device = bound_of(parser, options), device_of(None)
    shown = watch or watcher("bench padding")
    run(device, options.out, quick=options.quick, deadline=deadline_in(bound), watch=shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
