"""One BERT layer before and after a patch, drawn with the launches that are counted: docs/images/layer.svg.

    python tests/scripts/layer_picture.py > docs/images/layer.svg

Counted without a GPU. fasttx takes this CPU for a GPU (tests/support/pretend_gpu.py), so that every choice is the one
of a GPU, and its Triton kernels run in the interpreter, each call one launch. An operator of PyTorch counts as one
launch, though some take more (attention's backward); views and allocations count as none. A layer is what a model of
two has more than a model of one.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support")]

import pretend_gpu  # noqa: E402

pretend_gpu.switch_on()

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes  # noqa: E402
from transformers import BertConfig, BertModel  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

import fasttx  # noqa: E402
from fasttx.ops import dispatch  # noqa: E402
from fasttx.triton_interpreter import repair  # noqa: E402

LENGTHS = (128, 9)
NONE = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.scalar_tensor")
"""Operators that launch nothing, besides views; a scalar may be a fill, which is left out in the peer's favour."""
WORDS = {
    "aten.addmm": "product and bias",
    "aten.mm": "product",
    "aten._scaled_dot_product": "attention",
    "aten.add": "sum",
    "aten.native_layer_norm": "layer norm",
    "aten.gelu": "GELU",
    "aten.where": "mask",
    "aten.cat": "join weights",
    "attention_fwd": "attention",
    "layer_norm_fwd": "sum and layer norm",
    "bias_gelu_fwd": "bias and GELU",
}
"""What a launch is called in the picture, by the beginning of its name."""


class Launches(TorchDispatchMode):
    """Writes down what is launched, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not str(func).startswith(NONE):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def launched(step: Callable[[], Any]) -> list[str]:
    """The launches of a step: operators of PyTorch, also those inside of ours, and kernels of Triton."""
    run = interpreter.GridExecutor.__call__
    with Launches() as found:

        def kernel(grid: Any, *args: Any, **kwargs: Any) -> None:
            found.names.append(grid.fn.__name__)
            with _disable_current_modes():  # how the interpreter runs it is no launch
                run(grid, *args, **kwargs)

        # `_modes`: our operators run as they do without a mode, so that what they call is seen too
        with (
            mock.patch.object(interpreter.GridExecutor, "__call__", kernel),
            mock.patch.object(dispatch, "_modes", int),
        ):
            step()
    return found.names


def one_kernel(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Dropout as it is on a GPU; PyTorch's on a CPU is three operators."""
    return torch.native_dropout(x, p, True)[0] if training and p else x


def of_model(layers: int, patched: bool, training: bool) -> list[str]:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=1,
        intermediate_size=128,
        vocab_size=99,
        attn_implementation="sdpa",
        # PyTorch's attention with dropout is one operator on a GPU, and many on a CPU
        attention_probs_dropout_prob=0.1 if patched else 0.0,
    )
    model = BertModel(config, add_pooling_layer=False).train(training)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    batch: dict[str, Any] = {"input_ids": mask * 7, "attention_mask": mask}
    if patched:
        fasttx.patch(model, unpad=True)
        batch["seq_lens"] = LENGTHS

    def step() -> None:
        with torch.set_grad_enabled(training):
            hidden = model(**batch).last_hidden_state
        if training:
            hidden.sum().backward()

    with mock.patch.object(torch.nn.functional, "dropout", one_kernel):
        return launched(step)


def of_layer(patched: bool, training: bool) -> list[str]:
    """What a second layer adds; in order, where forward is all there is."""
    one, two = (of_model(layers, patched, training) for layers in (1, 2))
    more = len(two) - len(one)
    if training:
        return ["" for _ in range(more)]
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    return two[same : same + more]


# ----------------------------------------------------------------------------------------------------------- drawing

WIDTH, ROW, TOP, LEFT, COLUMN = 760, 22, 104, 24, 344
STYLE = """
.card { fill: #ffffff; stroke: #d0d7de; } text { font: 14px system-ui, sans-serif; fill: #1f2933; }
.big { font-size: 20px; font-weight: 600; } .small { font-size: 13px; fill: #5b6673; }
.torch { fill: #dfe4ea; } .fast { fill: #0b7a75; } .fast + text { fill: #ffffff; }
.padding { fill: none; stroke: #aab4bf; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) {
  .card { fill: #1c2128; stroke: #444c56; } text { fill: #e8ecf1; } .small { fill: #98a4b3; }
  .torch { fill: #3a424d; } .fast { fill: #12897f; } .padding { stroke: #6b7785; }
}
"""
REAL = 0.62
"""How wide real tokens are drawn, of a padded batch."""


def words(names: list[str]) -> list[str]:
    """What each launch is called in the picture."""
    found = [next(text for start, text in WORDS.items() if name.startswith(start)) for name in names]
    for i in range(len(found) - 1):
        if names[i].startswith("aten.cat") and not names[i + 1].startswith("aten.cat"):
            found[i + 1] = "one product for q, k and v"
    return found


def _column(x: int, title: str, names: list[str], padded: bool) -> list[str]:
    lines = [f'<text class="big" x="{x}" y="44">{title}</text>']
    lines.append(f'<text class="small" x="{x}" y="68">inference: {len(names)} launches</text>')
    width = round(COLUMN * REAL)
    for i, (name, text) in enumerate(zip(names, words(names), strict=True)):
        y = TOP + i * ROW
        kind = "torch" if name.startswith("aten.") else "fast"
        if padded:
            rest = f'x="{x + width}" y="{y + 0.5}" width="{COLUMN - width - 14}" height="{ROW - 5}"'
            lines.append(f'<rect class="padding" {rest}/>')
        lines.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{ROW - 4}" rx="3"/>')
        lines.append(f'<text x="{x + 8}" y="{y + 14}">{text}</text>')
    return lines


def picture(before: list[str], after: list[str], training: tuple[int, int]) -> str:
    """The SVG, which follows the reader's light or dark."""
    bottom = TOP + ROW * max(len(before), len(after))
    height, right = bottom + 66, LEFT + COLUMN + 24
    alt = (
        f"One BERT layer. transformers: {len(before)} launches, on padded batches. fasttx: {len(after)} launches, on "
        f"real tokens. Forward and backward: {training[0]} and {training[1]}."
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{alt}">',
        f"<title>{alt}</title><style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
        *_column(LEFT, "One BERT layer", before, True),
        *_column(right, "The same, patched", after, False),
        f'<text class="small" x="{LEFT}" y="88">forward and backward: {training[0]} launches</text>',
        f'<text class="small" x="{right}" y="88">forward and backward: {training[1]} launches</text>',
        f'<text class="small" x="{LEFT}" y="{bottom + 20}">grey: PyTorch; dashed: padding, computed too</text>',
        f'<text class="small" x="{right}" y="{bottom + 20}">green: fasttx\'s kernels; no padding</text>',
        f'<text class="small" x="{LEFT}" y="{bottom + 46}">Counted without a GPU (tests/scripts/layer_picture.py); '
        "each operator of PyTorch counts as one launch.</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    # launchers run, in the interpreter, in place of the pretended ones
    dispatch.resolve = lambda path: getattr(importlib.import_module(path.split(":")[0]), path.split(":")[1])
    repair()
    before, after = (of_layer(patched, False) for patched in (False, True))
    steps = [len(of_layer(patched, True)) for patched in (False, True)]
    print(picture(before, after, (steps[0], steps[1])), end="")


if __name__ == "__main__":
    main()
