"""What a model's step runs on: which backend each op took, how often, and why not another."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from ...ops.decisions import Decision, recorded
from .. import layout
from ..patch import _root
from .batch import arguments_of, call
from .step import loss_of, without_trace

COLUMNS = ("what", "ran as", "times", "why")


@dataclass
class Explanation:
    """What :func:`explain` found: ``print`` it; ``rows`` and ``to_dict()`` hold the same.

    Attributes:
        model: the class of the model.
        backward: whether the step had a loss, and so a backward pass.
        rows: each decision with how often it was taken, in the order of the first time.
    """

    model: str
    backward: bool
    rows: list[tuple[Decision, int]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = [{**decision._asdict(), "times": times} for decision, times in self.rows]
        return {"model": self.model, "backward": self.backward, "rows": rows}

    def __str__(self) -> str:
        step = "forward and backward" if self.backward else "forward alone, as the output has no loss to differentiate"
        head = layout.heading(f"fasttx.explain({self.model}): one step, {step}")
        if not self.rows:
            return f"{head}\nnothing of fasttx took part: is the model patched (fasttx.patch)?"
        rows = [(d.what, d.choice, str(times), d.reason) for d, times in self.rows]
        return "\n".join([head, *layout.table(COLUMNS, rows)])

    __repr__ = __str__


def explain(model: Any, batch: Any, *, tokenizer: Any = None) -> Explanation:
    """Run one real step and say who computed what.

    The step runs in the model's present mode, with the autocast that is in force, and with a backward pass if the
    output has a loss. Weights, their gradients, modes and random generators are left as they were.

    Args:
        model: whatever :func:`fasttx.patch` takes. If it is a module, it is what is called.
        batch: the arguments of its forward by name (with labels, to see the backward pass); a tensor, or a tuple of
            arguments in their order; or a list of texts.
        tokenizer: a tokenizer of transformers, for texts. A pipeline, a SentenceTransformer and a CrossEncoder bring
            their own.

    Returns:
        An explanation, with a row for each op (``attention_fwd``), for each drop-in that handed a call to torch's own
        function, and for each part of a patched model that had a choice. A compiled graph is compiled anew for this
        step: its Python decides first, then its ops are counted as they run.

    Raises:
        TypeError: `batch` is none of these.
        ValueError: there are texts and no tokenizer.
        What the model itself raises.
    """
    root = _root(model)
    arguments = arguments_of(model, root, batch, tokenizer)
    with without_trace(root), recorded() as decisions:
        output = call(root, arguments)
        loss = loss_of(output) if torch.is_grad_enabled() else None
        if loss is not None:
            loss.sum().backward()
    return Explanation(type(root).__name__, loss is not None, list(Counter(decisions).items()))
