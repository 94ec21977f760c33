"""embedding_layer_norm: word, position and token-type embeddings, their layer norm and dropout in one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..ops.backends import forced_backend
from ..ops.checks import check_index_values, values_may_be_read
from ..ops.dropout.rows import keep_scale
from ..ops.dropout.state import new_rng_state
from ..ops.embedding_layer_norm.composed import differentiable, exact_keep, table_gradient
from ..ops.embedding_layer_norm.op import EMBEDDING_LAYER_NORM, MAX_TYPES, keep_of
from ..ops.exporting import called, called_backward
from ._checks import check_dropout_p, check_eps
from ._embedding_checks import NO_PADDING, check_tensors, padding_of
from ._routing import aliases, applied, overrides_functions, records_gradients, refuse_if_forced, unsupported_reason

_fwd = called(EMBEDDING_LAYER_NORM)
_bwd = called_backward(EMBEDDING_LAYER_NORM)


class EmbeddingLayerNormFunction(torch.autograd.Function):
    """Autograd over fasttx::embedding_layer_norm_fwd / _bwd; saves ids, tables, and two float32 a row."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None,
        type_ids: Tensor | None, token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None,
        row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, eps: float, out_dtype: torch.dtype,
        word_padding: int, position_padding: int, type_padding: int, backend: str,
    ) -> Tensor:  # fmt: skip
        tensors = (ids, word, position_ids, position, type_ids, token_type, weight, bias)
        out, mean, rstd = _fwd(*tensors, row_index, rng_state, dropout_p, eps, out_dtype, backend)
        ctx.save_for_backward(*tensors, mean, rstd, row_index, rng_state)
        ctx.options = (dropout_p, eps, out_dtype, (word_padding, position_padding, type_padding), backend)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Any, ...] = ctx.saved_tensors
        tensors, (mean, rstd, row_index, rng_state) = saved[:8], saved[8:]
        ids, word, position_ids, position, type_ids, token_type, _, _ = tensors
        dropout_p, eps, out_dtype, paddings, backend = ctx.options
        needs = ctx.needs_input_grad[:8]
        rest = (None,) * 9
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: to be differentiated again
            keep = None if rng_state is None else keep_of(ids, word, row_index, rng_state, dropout_p, backend)
            tensors = aliases(*tensors)
            out = differentiable(*tensors, keep, dropout_p, eps, out_dtype, paddings)  # type: ignore[call-arg]
            inputs = [t for t, need in zip(tensors, needs) if need]
            found = iter(torch.autograd.grad(out, inputs, dout, create_graph=True))
            return (*(next(found) if need else None for need in needs), *rest)
        _, needs_dword, _, needs_dposition, _, needs_dtype, needs_dweight, needs_dbias = needs
        summed = needs_dtype and token_type.shape[0] <= MAX_TYPES
        needs_dz = needs_dword or needs_dposition or (needs_dtype and not summed)
        dz, dtoken_type, dweight, dbias = _bwd(
            dout, *tensors, mean, rstd, row_index, rng_state, dropout_p,
            needs_dz, summed, needs_dweight, needs_dbias, backend,
        )  # fmt: skip
        dword = dposition = None
        if needs_dword:
            dword = table_gradient(dz, ids, word.shape[0], paddings[0]).to(word.dtype)
        if needs_dposition:
            dposition = table_gradient(dz, position_ids, position.shape[0], paddings[1]).to(position.dtype)
        if needs_dtype and not summed:
            dtoken_type = table_gradient(dz, type_ids, token_type.shape[0], paddings[2]).to(token_type.dtype)
        elif summed and paddings[2] != NO_PADDING:
            dtoken_type[paddings[2]].zero_()
        grads = (None, dword, None, dposition, None, dtoken_type, dweight, dbias)
        return (*(grad if need else None for grad, need in zip(grads, needs)), *rest)


_record = applied(EmbeddingLayerNormFunction)


# -------------------------------------------------------------------------------------------------------------- calls


def _check_values(lookups: tuple[tuple[str, Tensor, Tensor, int], ...]) -> None:
    for name, index, table, _ in lookups:
        check_index_values(name, index, table.shape[0])


def _by_torch(
    lookups: tuple[tuple[str, Tensor, Tensor, int], ...], weight: Tensor | None, bias: Tensor | None,
    row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, eps: float,
) -> Tensor:  # fmt: skip
    """The same from torch's own functions: what the operators do not cover, and what a CPU runs."""
    z: Any = None
    for _, index, table, padding in lookups:
        rows = torch_functional.embedding(index, table, None if padding == NO_PADDING else padding)
        z = rows if z is None else z + rows
    weight, bias = (t if t is None or t.dtype == z.dtype else t.to(z.dtype) for t in (weight, bias))
    out = torch_functional.layer_norm(z, z.shape[-1:], weight, bias, eps)
    if dropout_p > 0.0 and rng_state is None:
        out = torch_functional.dropout(out, dropout_p)
    elif dropout_p > 0.0 and rng_state is not None:
        ids, flat = lookups[0][1].reshape(-1), None if row_index is None else row_index.reshape(-1)
        keep = exact_keep(ids, z.shape[-1], flat, rng_state, dropout_p).view(out.shape)
        out = out * (keep.to(out.dtype) * keep_scale(dropout_p))
    return out


def _repeating(index: Tensor, full: torch.Size) -> Tensor:
    """index, which broadcasts to `full`, as 1-D: as it is where only whole sequences repeat it, else a copy."""
    shape = index.shape
    while len(shape) and shape[0] == 1:
        shape = shape[1:]
    if shape == full[len(full) - len(shape) :]:
        return index.reshape(-1)
    return index.expand(full).reshape(-1)


def embed(
    input: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None, paddings: tuple[int, int, int],
    dropout_p: float, eps: float, row_index: Tensor | None, rng_state: Tensor | None, backend: str,
) -> Tensor:  # fmt: skip
    """:func:`embedding_layer_norm` of checked arguments under `backend`; a table comes with its ids."""
    # in the order in which transformers' BERT adds them
    lookups: tuple[tuple[str, Tensor, Tensor, int], ...] = (("input", input, word, paddings[0]),)
    if type_ids is not None and token_type is not None:
        lookups += (("token_type_ids", type_ids, token_type, paddings[2]),)
    if position_ids is not None and position is not None:
        lookups += (("position_ids", position_ids, position, paddings[1]),)
    out_dtype = word.dtype
    for _, _, table, _ in lookups:
        out_dtype = torch.promote_types(out_dtype, table.dtype)
    on_cpu = input.device.type == "cpu"
    if not on_cpu and torch.is_autocast_enabled(input.device.type):  # float32 is what autocast gives a layer norm there
        out_dtype = torch.promote_types(out_dtype, torch.float32)
    reason = unsupported_reason(input, word, position_ids, position, type_ids, token_type, weight, bias)
    if reason is None and backend == "auto" and on_cpu and rng_state is None and row_index is None:
        reason = "torch's own functions are as fast on a CPU"
    numbers = dropout_p, eps, out_dtype
    if reason is not None:
        if not on_cpu and values_may_be_read(input.device):
            _check_values(lookups)
        try:
            out = _by_torch(lookups, weight, bias, row_index, rng_state, dropout_p, eps)
        except IndexError:
            _check_values(lookups)  # says which argument, in place of torch's "index out of range in self"
            raise
        refuse_if_forced("embedding_layer_norm", reason, input, backend)
        return out
    if dropout_p > 0.0 and rng_state is None:
        rng_state = new_rng_state(input.device)
    shape = input.shape
    arguments = (
        input.reshape(-1), word, None if position_ids is None else _repeating(position_ids, shape), position,
        None if type_ids is None else _repeating(type_ids, shape), token_type, weight, bias,
        None if row_index is None else row_index.reshape(-1), rng_state,
    )  # fmt: skip
    tables = (word, position, token_type, weight, bias)
    try:
        if records_gradients(*tables):
            out = _record(*arguments, *numbers, *paddings, backend)
        else:
            out = _fwd(*arguments, *numbers, backend)[0]
    except ValueError:
        _check_values(lookups)  # says which argument, by the caller's name for it
        raise
    return out.view(*shape, word.shape[1])


def embedding_layer_norm(
    input: Tensor,
    word_embeddings: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    position_embeddings: Tensor | None = None,
    position_ids: Tensor | None = None,
    token_type_embeddings: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    padding_idx: int | None = None,
    position_padding_idx: int | None = None,
    token_type_padding_idx: int | None = None,
    dropout_p: float = 0.0,
    eps: float = 1e-5,
    training: bool = True,
    row_index: Tensor | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    r"""The embeddings that a BERT begins with: words, positions and token types, added, layer-normed and dropped out.

    .. math::
        out = d \cdot \left(\frac{z - \mathrm{E}[z]}{\sqrt{\mathrm{Var}[z] + eps}} \cdot weight + bias\right), \quad
        z = word[input] + token\_type[types] + position[positions], \quad d = \mathrm{keep} / (1 - \hat p)

    Args:
        input: token ids, int32 or int64 of any shape.
        word_embeddings: the table (rows, n). Each table has a dtype of its own; the kernels take float32, float16 and
            bfloat16.
        weight, bias: (n,), of any floating dtype; or None.
        position_embeddings: a table (rows, n) to add, or None.
        position_ids: int32 or int64, broadcastable to input. None counts from 0 along the last dimension of input.
        token_type_embeddings: a table (rows, n) to add, or None.
        token_type_ids: int32 or int64, broadcastable to input. None is 0 everywhere.
        padding_idx, position_padding_idx, token_type_padding_idx: a row of the table that gets no gradient, or None.
        dropout_p: probability of zeroing an element of the result, in [0, 1), in steps of 1/256 on the kernels.
        eps: added to the variance, which divides by n.
        training: False turns dropout off.
        row_index: int32 or int64, of input's shape: which row of the dropout mask each token takes. Tokens of equal
            numbers drop the same columns. None numbers them in order.
        rng_state: int64 (2,), the (seed, offset) of the mask. None draws one from the generator of input's device.

    Returns:
        Tensor (\*input.shape, n), in the dtype that the tables promote to, and float32 under autocast, except on a CPU.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range. The message names it. Ids
            are compared with their tables on a CPU, and on a GPU with FASTTX_CHECK=1; without that a wrong id makes its
            token's row NaN there.
        BackendError: a forced backend cannot run the call.

    Saved for backward: the ids, the tables themselves, two float32 a token and two integers. Neither the sum nor the
    mask is saved. The gradients of tables are dense; sums are deterministic.

    Numerics: the sum is float32 and never rounded. Statistics are those of :func:`layer_norm`. Gradients of positions
    that repeat in each sequence are added in float32. On a CPU PyTorch's functions run for calls without row_index and
    rng_state. On every device they run for float64, torch.func transforms, forward-mode AD and subclasses of Tensor.

    Source: Devlin et al., "BERT", 2019, section 3; for the norm and the mask as for :func:`dropout_add_layer_norm`.
    """
    given = {
        "word_embeddings": word_embeddings, "weight": weight, "bias": bias,
        "position_embeddings": position_embeddings, "position_ids": position_ids,
        "token_type_embeddings": token_type_embeddings, "token_type_ids": token_type_ids,
        "row_index": row_index, "rng_state": rng_state,
    }  # fmt: skip
    paddings = {
        "padding_idx": padding_idx, "position_padding_idx": position_padding_idx,
        "token_type_padding_idx": token_type_padding_idx,
    }  # fmt: skip
    tensors = (input, *given.values())
    if any(t is not None and overrides_functions(t) for t in tensors) and has_torch_function(tensors):
        options: dict[str, Any] = {**given, **paddings}
        return handle_torch_function(
            embedding_layer_norm, tensors, input, **options, dropout_p=dropout_p, eps=eps, training=training
        )
    check_tensors(input, given)
    check_dropout_p(dropout_p)
    check_eps(eps)
    tables = (word_embeddings, position_embeddings, token_type_embeddings)
    rows = tuple(padding_of(name, number, table) for (name, number), table in zip(paddings.items(), tables))
    if not training or dropout_p == 0.0:
        dropout_p, rng_state, row_index = 0.0, None, None
    if position_embeddings is not None and position_ids is None:
        position_ids = torch.arange(input.shape[-1], device=input.device) if input.dim() else torch.zeros_like(input)
    if token_type_embeddings is not None and token_type_ids is None:
        token_type_ids = torch.zeros((1,) * min(input.dim(), 1), dtype=torch.int64, device=input.device)
    return embed(
        input, word_embeddings, position_ids, position_embeddings, token_type_ids, token_type_embeddings, weight, bias,
        (rows[0], rows[1], rows[2]), float(dropout_p), float(eps), row_index, rng_state, forced_backend(),
    )  # fmt: skip
