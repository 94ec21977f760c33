"""One model's weights under each attention and compiler (bench/arms.py), and how exact its results are."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

import fasttx
from fasttx.models.diagnostics.step import training_without_dropout
from fasttx.testing import FLOOR, compare

from .arms import SHAPES, Arm

Batch = dict[str, Any]


def config_of(name: str, layers: int | None = None) -> Any:
    """A BertConfig of that name's shape, with dropout 0.1 as shipped; `layers` in place of its own number.

    Raises:
        ValueError: no model has that name.
    """
    from transformers import BertConfig

    if name not in SHAPES:
        raise ValueError(f"model: got {name!r}; allowed are {', '.join(SHAPES)}")
    return BertConfig(**SHAPES[name] | ({"num_hidden_layers": layers} if layers else {}))


def build(config: Any, head: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights, the same at every call: an ``"encoder"`` without a pooler, or one with an ``"mlm"`` head."""
    from transformers import BertForMaskedLM, BertModel

    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config._attn_implementation = "sdpa"
    model = BertForMaskedLM(config) if head == "mlm" else BertModel(config, add_pooling_layer=False)
    return model.to(device, dtype)


def missing(arm: Arm, device: torch.device) -> str:
    """Why this arm cannot run here, or ""."""
    if arm.attention != "flash_attention_2":
        return ""
    # transformers itself would fetch a kernel from the network where the package is missing
    if importlib.util.find_spec("flash_attn") is None:
        return "not installed: flash_attn"
    return "" if device.type == "cuda" else "needs a GPU"


def make_arm(arm: Arm, base: nn.Module, unpad: bool | str, backend: str) -> nn.Module:
    """A copy of `base` that runs as `arm` says; it is compiled at its first call."""
    model: Any = copy.deepcopy(base)
    model.set_attn_implementation(arm.attention)
    if arm.patched:
        fasttx.patch(model, unpad=unpad)
    if arm.mode:
        # Lengths differ from batch to batch, so that a graph which depends on them must be dynamic to be of use; the
        # padded shape is the same in each.
        mode = arm.mode if backend == "inductor" else None
        model.compile(dynamic=None if arm.lengths_known else False, backend=backend, mode=mode)
    return model


# -------------------------------------------------------------------------------------------------------- accuracy


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states of the real tokens, in eval mode."""
    with torch.no_grad():
        return model.eval()(**batch).last_hidden_state[batch["attention_mask"].bool()]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The head's own loss; of an encoder a weighted sum of the hidden states of real tokens."""
    output = model(**batch)
    if "labels" in batch:
        return output.loss
    hidden = output.last_hidden_state
    # A plain sum over what a layer norm gives does not depend on its input.
    weights = torch.linspace(-1, 1, hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
    return ((hidden @ weights) * batch["attention_mask"]).sum()


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The gradient of every parameter (zeros where there is none), without dropout."""
    with training_without_dropout(model):
        model.zero_grad(set_to_none=True)
        loss_of(model, batch).backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def gradient_error(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients over the norm of the reference."""
    apart = sum(float((found[name].to(ref.dtype) - ref).double().square().sum()) for name, ref in reference.items())
    return (apart / sum(float(ref.double().square().sum()) for ref in reference.values())) ** 0.5


class Judge:
    """How far arms are from the same weights in a higher precision: float64 on a CPU, float32 on a GPU.

    Args:
        base: the model, unpatched, in the dtype of the arms; it is left as it was.
        batch: the batch that will be timed.
        training: compare gradients (relative norm) and not hidden states (largest difference).
        peer: PyTorch's own, whose error, doubled, is allowed.
    """

    def __init__(self, base: nn.Module, batch: Batch, training: bool, peer: nn.Module) -> None:
        parameter = next(base.parameters())
        exact = copy.deepcopy(base).to(torch.float32 if parameter.is_cuda else torch.float64)
        self._batch, self._training = batch, training
        self._reference: Any = self._found(exact)
        self._peer: Any = self._found(peer)
        self._dtype = parameter.dtype

    def compare(self, model: nn.Module, **lengths: Any) -> tuple[float, float]:
        """The error of an arm that is called with `lengths` besides, and what is allowed.

        Hidden states by the rule of fasttx.testing, all of them as one row; of gradients, the norm of all differences
        over the norm of all gradients is at most twice the peer's and the floor.
        """
        found = self._found(model, **lengths)
        if self._training:
            allowed = 2 * gradient_error(self._peer, self._reference) + FLOOR[self._dtype]
            return gradient_error(found, self._reference), allowed
        compared = compare(found, self._peer, self._reference, by="tensor")
        return compared.error, compared.allowed

    def _found(self, model: nn.Module, **lengths: Any) -> Any:
        return (gradients if self._training else hidden_states)(model, self._batch | lengths)
