"""Whether a patched model computes what the unpatched one does, judged against a higher precision."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ... import nn as fasttx_nn
from ...functional._packing import first_tokens
from ...ops.backends import backend
from ...ops.decisions import recorded
from ...quant import int8_layers, put_back
from ...testing import compare
from .. import layout
from ..padding.lengths import checked_lengths
from ..patch import _root, is_patched, unpatch
from .batch import Arguments, arguments_of, call
from .int8_errors import LayerError, layer_errors, lines_of
from .step import loss_of, named_outputs, training_without_dropout, without_trace

Results = dict[tuple[str, str], Tensor]
"""(kind, name) -> what one model computed."""
LEAST_GRADIENT = 0.1
"""The least size of a gradient, beside the largest of the model."""
SHOWN = 8
"""Gradients that print shows: those nearest to, or beyond, what is allowed."""


@dataclass(frozen=True)
class Compared:
    """One tensor.

    Attributes:
        kind: ``"output"`` (eval mode), ``"loss"`` or ``"gradient"`` (training mode, dropout 0).
        name: of the output, or of the parameter.
        error: largest difference of the patched model from the reference.
        unpatched_error: the same of the unpatched model in the same dtype.
        allowed: twice that, and a small floor: the rule of :mod:`fasttx.testing`, of the whole tensor.
    """

    kind: str
    name: str
    error: float
    unpatched_error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed


@dataclass
class Verification:
    """What :func:`verify` found: ``print`` it, or ask ``ok``; ``rows`` and ``to_dict()`` hold everything.

    Attributes:
        model: the class of the model.
        reference: dtype of the reference, ``"float32"`` or ``"float64"``.
        rows: every tensor that was compared.
        int8: the error of each int8 layer by itself, the largest first.
    """

    model: str
    reference: str
    rows: list[Compared] = field(default_factory=list)
    int8: list[LayerError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every tensor is as near to the reference as is allowed."""
        return all(row.ok for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = [{**vars(row), "ok": row.ok} for row in self.rows]
        return {"model": self.model, "reference": self.reference, "ok": self.ok, "rows": rows} | {
            "int8": [vars(layer) for layer in self.int8]
        }

    def __str__(self) -> str:
        wrong = sum(not row.ok for row in self.rows)
        verdict = "ok" if not wrong else f"{wrong} of {len(self.rows)} tensors are WRONG"
        gradients = sorted(
            (r for r in self.rows if r.kind == "gradient"), key=lambda r: -r.error / (r.allowed or 1e-300)
        )
        shown = [row for row in self.rows if row.kind != "gradient"] + gradients[:SHOWN]
        lines = [layout.heading(f"fasttx.verify({self.model}): {verdict}; largest errors against {self.reference}")]
        header = [*(f"{of:>9}" for of in ("fasttx", "PyTorch", "allowed")), *([""] if wrong else []), "of"]
        lines += layout.table(header, [_cells(row, wrong > 0) for row in shown])
        if len(gradients) > SHOWN:
            lines.append(f"and {len(gradients) - SHOWN} more gradients, nearer to the reference")
        return "\n".join([*lines, *lines_of(self.int8)])

    __repr__ = __str__


def _cells(row: Compared, marked: bool) -> list[str]:
    """One row to print, with a mark where any row has one."""
    figures = [f"{figure:9.2e}" for figure in (row.error, row.unpatched_error, row.allowed)]
    name = row.name if row.kind == row.name else f"{row.kind} {row.name}"
    return [*figures, *(["" if row.ok else "WRONG"] if marked else []), name]


def verify(model: Any, batch: Any, *, tokenizer: Any = None) -> Verification:
    """Compare a patched model, or one built on fasttx.nn, with PyTorch's own modules, on a batch of yours.

    Three models run one after the other: the given one, an unpatched copy in the same dtype, and the reference: an
    unpatched copy in float32 with transformers' eager attention (float64 where the model is in float32). In the copies
    modules of fasttx.nn become torch.nn's of that name; those that torch lacks run as PyTorch's operators. Outputs are
    compared in eval mode at real tokens. The loss and every parameter's gradient are compared in training mode with
    dropout at 0, both by transformers' definition (``loss="hf"``), as the copies have no other. The model, its
    gradients and the random generators are left as they were. Memory holds one more model at a time.

    A model with int8 layers is compared with one in float, whose layers are those of ``Int8Config(keep_float=True)``,
    else of the rounded weights; the unpatched copy has int8 layers too, and only outputs are compared, as int8 has no
    gradients. ``int8`` tells the error of each layer by itself: those with the largest are the first to ``skip``.

    Args:
        model: a patched model, or one built on fasttx.nn. It may be a model of transformers, a module around one whose
            call returns its output, or one made of torch.nn's modules, whose output may be a tensor, a tuple or a
            mapping.
        batch: the arguments of its forward by name; a tensor, or a tuple of arguments in their order; or a list of
            texts. Without labels only outputs are compared. The loss is the output of that name, or a single number
            that is the output or its first item.
        tokenizer: a tokenizer of transformers, for texts. A pipeline, a SentenceTransformer and a CrossEncoder bring
            their own.

    Returns:
        A verification; ``ok`` says whether every tensor keeps to the rule of :mod:`fasttx.testing`: at most twice the
        unpatched model's error, plus a floor.

    Raises:
        ValueError: nothing of fasttx is in the model; its output holds no tensor; there are texts and no tokenizer; or
            the caller packed the batch (``cu_seq_lens_q``), for which no copy has an attention.
        TypeError: `batch` is none of these.
    """
    root = _root(model)
    arguments = arguments_of(model, root, batch, tokenizer)
    dtype = next((p.dtype for p in root.parameters()), torch.float32)
    higher = torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32
    gradients = not int8_layers(root)
    copies = _for_copies(arguments)
    mask = copies.get("attention_mask") if isinstance(copies, Mapping) else None
    if not is_patched(root):
        _refuse_plain(root, arguments)
    found = _results(root, arguments, mask, gradients)
    if not found:
        raise ValueError(
            f"batch: got no floating tensor out of {type(root).__name__}; allowed is one whose output can be compared"
        )
    plain = _plain_copy(root)
    with contextlib.nullcontext() if is_patched(root) else backend("torch"):  # for functions of fasttx.nn
        same = _results(plain, copies, mask, gradients)
        layers = layer_errors(plain, copies, mask)
        put_back(plain)
        for module in plain.modules():
            if isinstance(module, PreTrainedModel):
                module.set_attn_implementation("eager")
        reference = _results(plain.to(higher), _as(copies, higher), mask, gradients)
    del plain
    return Verification(type(root).__name__, str(higher).removeprefix("torch."), _rows(found, same, reference), layers)


def _refuse_plain(root: nn.Module, arguments: Arguments) -> None:
    """Raises where a model that is not patched has nothing of fasttx to compare either."""
    if any(type(module).__module__.startswith(fasttx_nn.__name__) for module in root.modules()):
        return
    with without_trace(root), torch.no_grad(), recorded() as decisions:
        call(root, arguments)
    if not decisions:
        raise ValueError(
            f"model: got a {type(root).__name__} that is not patched and holds nothing of fasttx.nn; allowed is one "
            "that does or is: call fasttx.patch(model) first"
        )


def _plain_copy(root: nn.Module) -> nn.Module:
    """A copy without a patch, whose modules are torch.nn's wherever torch.nn has one of that name."""
    plain = copy.deepcopy(root)
    if is_patched(plain):
        unpatch(plain)
    for module in plain.modules():
        cls = type(module)
        torch_class = getattr(nn, cls.__name__, None)
        if (
            cls.__module__.startswith(fasttx_nn.__name__)
            and isinstance(torch_class, type)
            and issubclass(cls, torch_class)
        ):
            module.__class__ = torch_class
    return plain


def _rows(found: Results, same: Results, reference: Results) -> list[Compared]:
    """A row for each tensor of the reference. One that a model lacks (a parameter without a gradient) counts as 0.

    Each is held to the rule of fasttx.testing as one row, because each of its rows has the errors of all layers. A
    gradient counts as at least a tenth of the largest of all: some are 0 but for the rounding of terms of that size
    (that of a key's bias, for one).
    """
    largest = max((float(x.abs().max()) for (kind, _), x in reference.items() if kind == "gradient"), default=0.0)
    rows = []
    only_patched = {k: torch.zeros_like(x) for k, x in found.items() if k[0] == "gradient" and k not in reference}
    for (kind, name), exact in (reference | only_patched).items():
        if kind == "output" and (kind, name) not in found:
            continue  # logits that a patched head does not compute
        dtype = next(iter(found.values())).dtype
        got, plain = (r.get((kind, name), torch.zeros_like(exact, dtype=dtype)) for r in (found, same))
        least = LEAST_GRADIENT * largest if kind == "gradient" else 0.0
        rows.append(Compared(kind, name, *compare(got, plain, exact, least=least, by="tensor")))
    return rows


def _for_copies(batch: Arguments) -> Arguments:
    """The batch in words of transformers: lengths, which a patched model takes alone, become a mask."""
    if not isinstance(batch, Mapping):
        return batch
    if batch.get("cu_seq_lens_q") is not None:
        raise ValueError(
            "batch: got cu_seq_lens_q, of a batch that the caller has packed; allowed is a padded one, which an "
            "unpatched copy can run too"
        )
    copies = dict(batch)
    lengths = copies.pop("seq_lens", None)
    if lengths is not None and copies.get("attention_mask") is None:
        given = copies.get("input_ids", copies.get("inputs_embeds"))
        if isinstance(given, Tensor):
            copies["attention_mask"] = first_tokens(
                checked_lengths(lengths, given), given.shape[1], given.device
            ).long()
    return copies


def _as(batch: Arguments, dtype: torch.dtype) -> Arguments:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    if isinstance(batch, Mapping):
        return {name: cast(value) for name, value in batch.items()}
    return tuple(map(cast, batch))


def _results(model: nn.Module, batch: Arguments, mask: Any, gradients: bool) -> Results:
    """Outputs at the tokens of a mask, and loss and `gradients` of one model, on the CPU."""
    found: Results = {}
    modes = [(module, module.training) for module in model.modules()]
    with without_trace(model):
        try:
            model.eval()
            with torch.no_grad():
                output = call(model, batch)
        finally:
            for module, training in modes:
                module.training = training
        for name, value in named_outputs(output).items():
            found["output", name] = _real(value, mask).cpu()
        if not gradients:
            return found
        with training_without_dropout(model), _transformers_loss(model), torch.enable_grad():
            output = call(model, batch)
            loss = loss_of(output)
            if loss is not None:
                loss.sum().backward()
                found["loss", "loss"] = loss.detach().cpu()
                for name, p in model.named_parameters():
                    if p.grad is not None:
                        found["gradient", name] = p.grad.detach().cpu()
    return found


@contextlib.contextmanager
def _transformers_loss(model: nn.Module) -> Iterator[None]:
    """loss="hf" instead of "correct", which means another value where padding took part (question answering)."""
    marks = {id(mark): mark for m in model.modules() if (mark := m.__dict__.get("_fasttx")) is not None}
    before = [(mark, mark.options) for mark in marks.values()]
    try:
        for mark, options in before:
            if options.loss is not None:
                mark.options = dataclasses.replace(options, loss="hf")
        yield
    finally:
        for mark, options in before:
            mark.options = options


def _real(value: Tensor, mask: Any) -> Tensor:
    """The rows of real tokens, where an output has one row for each token."""
    if isinstance(mask, Tensor) and mask.dim() == 2 and value.shape[:2] == mask.shape:
        return value[mask.bool()]
    return value
