"""fasttx in PyTorch's registry of flash attention: ``torch.nn.attention.activate_flash_attention_impl("fasttx")``.

From then on PyTorch's own ``scaled_dot_product_attention``, where it takes its flash backend, and ``varlen_attn`` run
the attention op of this package, dropout and gradients included, also inside models that fasttx does not know.
``torch.nn.attention.restore_flash_attention_impl()`` ends it. Importing this package registers the name and activates
nothing.

On a CPU PyTorch has no kernel of these operators, so ``varlen_attn`` works there only while "fasttx" is active;
``scaled_dot_product_attention`` takes another operator on a CPU and stays PyTorch's.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from ...ops.attention.call import AttentionCall
from ...ops.attention.op import MAX_TOKEN_STRIDE
from ...ops.backends import forced_backend
from ...ops.checks import wrong
from ...ops.dropout.state import new_rng_state
from .autograd import last_dim_contiguous

NAME = "fasttx"
DEVICES = ("CUDA", "CPU")
"""The dispatch keys that are served; PyTorch's quantized overloads (fp8) stay its own."""


class _Varlen(NamedTuple):
    """What stands between the tensors and the options in the schemas of both packed operators."""

    cum_seq_q: Tensor | None
    cum_seq_k: Tensor | None
    max_q: int
    max_k: int
    dropout_p: float
    is_causal: bool
    scale: float | None
    left: int
    right: int


def _call(q: Tensor, k: Tensor, given: _Varlen, rng_state: Tensor | None) -> AttentionCall:
    left, right = given.left, 0 if given.is_causal else given.right
    starts_q, starts_k = given.cum_seq_q, given.cum_seq_k
    if starts_q is not None and starts_k is None:
        starts_k = starts_q
    if starts_q is None and (left >= 0 or right >= 0) and given.max_q != given.max_k:
        starts_q, starts_k = (
            torch.arange(0, (q.shape[0] + 1) * size, size, dtype=torch.int32, device=q.device)
            for size in (given.max_q, given.max_k)
        )  # as packed sequences, whose windows end at the last key, as PyTorch's flash attention has it
    return AttentionCall(
        cu_seqlens_q=starts_q,
        cu_seqlens_k=starts_k,
        rng_state=rng_state,
        max_seqlen_q=given.max_q,
        max_seqlen_k=given.max_k,
        softmax_scale=1.0 / math.sqrt(q.shape[-1]) if given.scale is None else given.scale,
        dropout_p=given.dropout_p,
        window_left=left,
        window_right=right,
    )


def _refuse(**unknown: object) -> None:
    """Raises NotImplementedError for options that the op does not have."""
    for name, value in unknown.items():
        if value is not None and value is not False:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else value
            allowed = f"{None if value is not True else False}, with the flash attention of {NAME!r}"
            raise NotImplementedError(wrong(name, got, allowed))


def _rows(x: Tensor, packed: bool) -> Tensor:
    """A padded batch as packed rows where the call was made one of packed sequences."""
    x = last_dim_contiguous(x)
    x = x.flatten(0, 1) if packed and x.dim() == 4 else x
    return x if x.stride(-3) <= MAX_TOKEN_STRIDE or x.shape[-3] <= 1 else x.contiguous()


def _run(q: Tensor, k: Tensor, v: Tensor, given: _Varlen) -> tuple[Tensor, Tensor, Tensor]:
    """out, logsumexp and the state that dropout was drawn from; q (batch, tokens, heads, head_dim) or packed."""
    state = new_rng_state(q.device) if given.dropout_p > 0.0 else None
    call = _call(q, k, given, state)
    packed = call.starts is not None
    out, lse = torch.ops.fasttx.attention_fwd(*(_rows(x, packed) for x in (q, k, v)), *call, forced_backend())
    if packed and q.dim() == 4:
        out, lse = out.view(*q.shape[:-1], -1), lse.view(q.shape[2], *q.shape[:2]).transpose(0, 1).contiguous()
    if state is None:
        state = torch.zeros(2, dtype=torch.int64, device=q.device)
    return out, lse, state.view(torch.uint64)


def _gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, given: _Varlen, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    call = _call(q, k, given, state.view(torch.int64) if given.dropout_p > 0.0 else None)
    packed = call.starts is not None
    if packed and q.dim() == 4:
        lse = lse.transpose(0, 1).reshape(q.shape[2], -1)
    tensors = [_rows(x, packed) for x in (dout, q, k, v, out)]
    deterministic = torch.are_deterministic_algorithms_enabled()
    found = torch.ops.fasttx.attention_bwd(*tensors, lse, *call, deterministic, False, forced_backend())
    dq, dk, dv = (dx.view(x.shape) for dx, x in zip(found[:3], (q, k, v), strict=True))
    return dq, dk, dv


def _beside(q: Tensor) -> tuple[Tensor, Tensor]:
    """What PyTorch's schemas return besides, and nobody reads: the unused number and the mask for debugging."""
    return torch.zeros((), dtype=torch.uint64, device=q.device), q.new_empty(0)


def _window(size: int | None) -> int:
    return -1 if size is None else size


def _flash_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,  # the op never splits keys, which is what 1 asks for
) -> tuple[Any, ...]:
    _refuse(
        return_debug_mask=return_debug_mask, seqused_k=seqused_k, alibi_slopes=alibi_slopes, block_table=block_table
    )
    window = _window(window_size_left), _window(window_size_right)
    given = _Varlen(cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, scale, *window)
    return *_run(query, key, value, given), *_beside(query)


def _flash_attention_forward_no_dropout_inplace(out: Tensor, *args: Any, **options: Any) -> Tensor:
    found, lse, *_ = _flash_attention_forward(*args, **options)
    out.copy_(found)
    return lse


def _flash_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    window = _window(window_size_left), _window(window_size_right)
    given = _Varlen(cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, scale, *window)
    return _gradients(grad_out, query, key, value, out, logsumexp, given, rng_state)


def _scaled_dot_product_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    _refuse(return_debug_mask=return_debug_mask)
    max_q, max_k = query.shape[2], key.shape[2]
    given = _Varlen(None, None, max_q, max_k, dropout_p, is_causal, scale, -1, -1)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    out, lse, state = _run(q, k, v, given)
    return out.transpose(1, 2), lse, None, None, max_q, max_k, state, *_beside(query)


def _scaled_dot_product_flash_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    given = _Varlen(None, None, max_q, max_k, dropout_p, is_causal, scale, -1, -1)
    tensors = (x.transpose(1, 2) for x in (grad_out, query, key, value, out))
    dout, q, k, v, o = tensors
    return tuple(dx.transpose(1, 2) for dx in _gradients(dout, q, k, v, o, logsumexp, given, philox_seed))


SERVED = (
    _flash_attention_forward,
    _flash_attention_forward_no_dropout_inplace,
    _flash_attention_backward,
    _scaled_dot_product_flash_attention,
    _scaled_dot_product_flash_attention_backward,
)
"""PyTorch's operators that are served, each by the function of its name; a version of PyTorch may lack some."""


class _Activation:
    """Holds the registrations while "fasttx" is active, as the registry wants it."""

    def __init__(self) -> None:
        self.library: Library | None = Library("aten", "IMPL")
        served = [function for function in SERVED if hasattr(torch.ops.aten, function.__name__)]
        with warnings.catch_warnings():  # that kernels of PyTorch are replaced is what the user asked for
            warnings.filterwarnings("ignore", message=".*may also be overridden")
            for function, device in itertools.product(served, DEVICES):
                self.library.impl(function.__name__, function, device)

    def remove(self) -> None:
        if self.library is not None:
            self.library._destroy()
            self.library = None


def register() -> bool:
    """Registers the name in PyTorch's registry, where this PyTorch has one (2.11 has); returns whether it has."""
    register_impl = getattr(torch.nn.attention, "register_flash_attention_impl", None)
    if register_impl is None:
        return False
    register_impl(NAME, register_fn=_Activation)
    return True
