"""What padding removal gains: a patched BERT beside transformers' sdpa, by the share of real tokens in a batch.

    python -m bench.padding [--out FILE] [--quick]

Random weights; widths of a tiny model, MiniLM and BERT-base, two layers each, as every layer costs the same. Lengths
spread evenly around the wanted share; dropout 0.1 in training, as shipped. One thread on a CPU. ``unpad=True`` packs
whatever the gain, and shows where ``"auto"`` has to stay padded. The figure is the first quartile of interleaved calls.
sdpa runs twice, as two models: the ratio of its two times, "sdpa / again", is what a ratio means on this machine.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fasttx

from .table import Watch, unwatched, write
from .timer import Call, interleaved

COLUMNS = (
    "hidden", "batch", "seqlen", "real", "saved_work_a_layer", "task", "sdpa_ms", "again_ms", "auto_ms", "always_ms",
    "sdpa / again", "sdpa / auto", "sdpa / always",
)  # fmt: skip
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


def run(
    device: torch.device, out: Path, *, quick: bool = False, say: Callable[[str], None] = print,
    watch: Watch[Any] = unwatched,
) -> list[Any]:  # fmt: skip
    """Measures every width and shape, writes `out`, and returns its rows; `quick` takes two of each."""
    from transformers import BertConfig, BertModel

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for hidden, heads in watch(WIDTHS[::3] if quick else WIDTHS):
        config = BertConfig(
            hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden, num_hidden_layers=2,
            vocab_size=99, attn_implementation="sdpa",
        )  # fmt: skip
        torch.manual_seed(0)
        arms: dict[str, nn.Module] = {"sdpa": BertModel(config).to(device)}
        arms["again"] = copy.deepcopy(arms["sdpa"])
        for name, unpad in (("auto", "auto"), ("always", True)):
            arms[name] = copy.deepcopy(arms["sdpa"])
            fasttx.patch(arms[name], unpad=unpad)
        for batch, seqlen, real in SHAPES[:2] if quick else SHAPES:
            each = lengths(batch, seqlen, real)
            mask = (torch.arange(seqlen) < each[:, None]).long().to(device)
            inputs = {"input_ids": mask * 7, "attention_mask": mask}
            saved = int((seqlen - each).sum()) * hidden * (12 * hidden + 4 * seqlen + 500)
            base = {"hidden": hidden, "batch": batch, "seqlen": seqlen, "real": float(each.sum()) / (batch * seqlen)}
            for task, training in (("inference", False), ("forward and backward", True)):
                timings = interleaved(
                    _calls(arms, inputs, training), device, rounds=2 if quick else 150, batch_ms=1.0, seconds=6.0
                )
                found = {name: t.low for name, t in timings.items()}
                rows.append(
                    {
                        **base, "task": task, "saved_work_a_layer": saved,
                        **{f"{name}_ms": ms for name, ms in found.items()},
                        **{f"sdpa / {name}": found["sdpa"] / found[name] for name in ("again", "auto", "always")},
                    }
                )  # fmt: skip
                write(rows, COLUMNS, out)
                say(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    torch.set_num_threads(threads)
    return rows


def main(arguments: list[str] | None = None, watch: Watch[Any] = unwatched) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("padding.csv"))
    parser.add_argument("--quick", action="store_true", help="two widths, two shapes, two rounds")
    options = parser.parse_args(arguments)
    run(torch.device("cuda" if torch.cuda.is_available() else "cpu"), options.out, quick=options.quick, watch=watch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
