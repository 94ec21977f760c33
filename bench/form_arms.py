"""A call for each regime of each form of fasttx.ops.forms: what `tune` times, once with each option."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fasttx
import fasttx.functional as ours
from fasttx.ops import forms
from fasttx.ops.forms import Form

HEADS, HEAD_DIM, WIDTH, CLASSES = 4, 64, 384, 30522


@dataclass
class Arm:
    """A call that asks a form.

    Attributes:
        run: the call.
        leaves: what it is differentiated by.
        exact: the same by PyTorch's own functions, of the leaves in float64.
        undropped: `run` without its dropout, to be compared with `exact`; `run` itself if None.
    """

    run: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    exact: Callable[..., Tensor]
    undropped: Callable[[], Tensor] | None = None

    def judged(self) -> list[Tensor]:
        """Result and gradients, to be compared with :meth:`reference`.

        Raises:
            ValueError: there is dropout, and a number that is not finite.
        """
        if self.undropped is None:
            return results(self.run, self.leaves)
        if not all(bool(each.isfinite().all()) for each in results(self.run, self.leaves)):
            raise ValueError("with dropout it gives numbers that are not finite")
        return results(self.undropped, self.leaves)

    def reference(self) -> list[Tensor]:
        """The same in float64."""
        leaves = tuple(leaf.detach().double().requires_grad_() for leaf in self.leaves)
        return results(lambda: self.exact(*leaves), leaves)


def results(run: Callable[[], Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """What a call gives, and its gradient by each leaf, for one dout."""
    out = run()
    dout = (
        torch.linspace(-1.0, 1.0, out.numel(), device=out.device).view(out.shape) if out.dim() else torch.ones_like(out)
    )
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))]


def arm_of(form: Form, dtype: torch.dtype, regime: str, device: torch.device, few: bool = False) -> Arm:
    """The call of a form in a regime; with `few` a smaller one of the same kind, so that float64 takes little time."""
    numbers = form.all()[regime]
    if few and len(numbers) == 1:
        numbers = (form.axes[0].typical[0],)
    draw = torch.Generator(device).manual_seed(1234)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).to(dtype).requires_grad_()

    return _MAKE[form.name](randn, *numbers, few=few)


Randn = Callable[..., Tensor]


def _qkv(randn: Randn, tokens: int, few: bool) -> Arm:
    from fasttx.models.fusions.joint_linear import joint_linear
    from fasttx.models.fusions.qkv import parts_now

    names, attention, x = ("query", "key", "value"), nn.Module(), randn(tokens, WIDTH)
    for name in names:
        layer = nn.Linear(WIDTH, WIDTH, device=x.device, dtype=x.dtype)
        layer.weight, layer.bias = nn.Parameter(randn(WIDTH, WIDTH) * WIDTH**-0.5), nn.Parameter(randn(WIDTH))
        attention.add_module(name, layer)
    layers: list[Any] = list(attention.children())
    leaves = (x, *(layer.weight for layer in layers), *(layer.bias for layer in layers))

    def run() -> Tensor:
        parts = parts_now(attention, names, x)
        q, k, v = (layer(x) for layer in layers) if isinstance(parts, str) else joint_linear(x, *parts)
        return q + 2 * k + 3 * v

    def exact(x: Tensor, *rest: Tensor) -> Tensor:
        q, k, v = (F.linear(x, weight, bias) for weight, bias in zip(rest[:3], rest[3:], strict=True))
        return q + 2 * k + 3 * v

    return Arm(run, leaves, exact)


def _padding(randn: Randn, saved: int, few: bool) -> Arm:
    from transformers import BertConfig, BertModel

    width = WIDTH
    tokens = max(2, round(saved / (width * (12 * width + 500))))
    total = tokens * 5 // 2  # 40 % are padding
    batch = 2 if total < 64 else 4 if total < 256 else 8
    seqlen = -(-total // batch)
    tokens = max(1, round(saved / (width * (12 * width + 4 * seqlen + 500))))
    padding, lengths = min(tokens, (batch - 1) * (seqlen - 1)), [seqlen] * batch
    for i in range(padding):
        lengths[1 + i % (batch - 1)] -= 1
    embeds = randn(batch, seqlen, width)
    shape = {"hidden_size": width, "num_attention_heads": 12, "intermediate_size": 4 * width, "num_hidden_layers": 2}
    config = BertConfig(**shape, vocab_size=99, attn_implementation="sdpa")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    mask = (torch.arange(seqlen) < torch.tensor(lengths)[:, None]).long().to(embeds.device)
    real, model = mask.bool(), copy.deepcopy(plain).to(embeds.device, embeds.dtype)
    fasttx.patch(model)
    wide = plain.to(embeds.device, torch.float64)

    def call(of: Any, embeds: Tensor) -> Tensor:
        return of(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[real]

    return Arm(lambda: call(model, embeds), (embeds,), lambda embeds: call(wide, embeds))


def _wide(randn: Randn, elements: int, few: bool) -> Arm:
    logits = randn(elements // CLASSES, CLASSES)
    target = torch.arange(logits.shape[0], device=logits.device) * 7919 % CLASSES
    return Arm(lambda: ours.cross_entropy(logits, target), (logits,), lambda logits: F.cross_entropy(logits, target))


def _logits(randn: Randn, n_bytes: int, few: bool) -> Arm:
    rows, width = n_bytes // (4 * CLASSES), 128
    x, weight, bias = randn(rows, width), randn(CLASSES, width), randn(CLASSES)
    target = torch.arange(rows, device=x.device) * 7919 % CLASSES
    return Arm(
        lambda: ours.linear_cross_entropy(x, weight, target, linear_bias=bias),
        (x, weight, bias),
        lambda x, weight, bias: F.cross_entropy(F.linear(x, weight, bias), target),
    )


def _attention(randn: Randn, batch: int, seqlen: int, head_dim: int, masked: int, dropout_p: float) -> Arm:
    """Attention in which the last `masked` keys of each sequence are hidden."""
    q, k, v = (randn(batch, HEADS, seqlen, head_dim) for _ in range(3))
    mask = (torch.arange(seqlen, device=q.device) < seqlen - masked).expand(batch, 1, 1, seqlen) if masked else None

    def run(dropout_p: float) -> Tensor:
        return ours.scaled_dot_product_attention(q, k, v, mask, dropout_p)

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask)

    return Arm(lambda: run(dropout_p), (q, k, v), exact, (lambda: run(0.0)) if dropout_p else None)


def _key_mask(randn: Randn, saved: int, few: bool) -> Arm:
    masked = saved // HEAD_DIM
    return _attention(randn, 4, 512 if masked > 64 else 128, HEAD_DIM, masked, 0.0)


def _dropout(randn: Randn, scores: int, few: bool) -> Arm:
    batch = 2
    return _attention(randn, batch, math.isqrt(scores // (batch * HEADS)), HEAD_DIM, 0, 0.1)


def _function(randn: Randn, seqlen: int, head_dim: int, mask: int, dropout: int, few: bool) -> Arm:
    batch = 2 if few else 32768 // seqlen
    return _attention(randn, batch, seqlen, head_dim, seqlen // 3 if mask else 0, 0.1 if dropout else 0.0)


_MAKE: dict[str, Callable[..., Arm]] = {
    forms.QKV.name: _qkv,
    forms.PADDING.name: _padding,
    forms.WIDE.name: _wide,
    forms.LOGITS.name: _logits,
    forms.KEY_MASK.name: _key_mask,
    forms.DROPOUT.name: _dropout,
    forms.FUNCTION.name: _function,
}
"""A new form gets a line here."""
