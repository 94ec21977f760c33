"""The loss of each kind of head, by fasttx's functions; :mod:`fasttx.models.heads.kinds` lists the kinds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput

from ...functional._binary_cross_entropy import _binary_cross_entropy
from ...functional._cross_entropy import _cross_entropy
from ...functional._linear_cross_entropy import _linear_cross_entropy
from ..attention.masks import for_batch
from .kind import Call, Kind, LabelledCall
from .labels import IGNORE, LABEL_COUNTS, Named, shape_error, tokens
from .vocabulary import labelled, plain_linear


def _mean_cross_entropy(call: Call, name: str, logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Cross-entropy, averaged over labels that are not ignored; logits (..., n_cols), labels (...), called `name`."""
    rows, labels = logits.reshape(-1, logits.shape[-1]), labels.to(logits.device)
    with Named(name, labels, logits.shape[:-1], logits.shape[-1], ignore_index):
        return _mean(
            lambda target: _cross_entropy(rows, target, ignore_index=ignore_index, backend=call.backend),
            labels.reshape(-1),
            call.correct,
            ignore_index,
        )


def _mean(loss: Callable[[Tensor], Tensor], target: Tensor, correct: bool, ignore_index: int = IGNORE) -> Tensor:
    """loss(target), a mean over targets that are not ignored; with `correct` 0 where all of them are."""
    if not correct:
        return loss(target)
    # A mean over nothing is 0/0. With stand-in labels the mean and its gradient are finite, and `where` drops both;
    # whether anything is labelled stays on the device.
    nothing = ~(target != ignore_index).any()
    found = loss(torch.where(nothing, torch.zeros_like(target), target))
    return torch.where(nothing, torch.zeros_like(found), found)


def classification(call: Call) -> Tensor:
    return _mean_cross_entropy(call, "labels", call.output.logits, call.arguments["labels"])


@dataclass(frozen=True)
class Pair:
    """The second task of a pretraining head, about a pair of sentences.

    Attributes:
        label: its argument.
        logits: their name in the output.
        classifier: of a model: gives them from the pooled output.
    """

    label: str
    logits: str
    classifier: Callable[[Any], Any]

    def loss(self, call: Call, logits: Tensor) -> Tensor:
        return _mean_cross_entropy(call, self.label, logits, call.arguments[self.label])

    def full(self, call: Call) -> Tensor:
        tokens = call.output.prediction_logits
        token_loss = _mean_cross_entropy(call, "labels", tokens, call.arguments["labels"])
        return token_loss + self.loss(call, call.output[self.logits])

    def rows(self, call: LabelledCall) -> tuple[Any, Tensor]:
        original = type(call.model)._fasttx_original
        output_class = getattr(sys.modules[original.__module__], f"{original.__name__}Output")
        logits = self.classifier(call.model)(call.output.pooler_output)
        kept = {"hidden_states": call.output.hidden_states, "attentions": call.output.attentions}
        return output_class(**{self.logits: logits}, **kept), _labelled_rows(call) + self.loss(call, logits)

    def kind(self) -> Kind:
        return Kind(self.full, labels=("labels", self.label), vocabulary=self.rows, per_token=True)


def _labelled_rows(call: LabelledCall) -> Tensor:
    """The token loss, from the rows that are labelled, without a matrix of logits where nothing forbids it."""
    hidden, labels = call.output.last_hidden_state, call.arguments["labels"]
    rows, target, missing = labelled(hidden, labels, call.capacity, call.arguments.get(LABEL_COUNTS))
    rows, decoder = call.head.features(call.model, rows), call.head.decoder(call.model)
    if not plain_linear(decoder):
        logits = decoder(rows)
        with Named("labels", labels, hidden.shape[:-1], logits.shape[-1]):
            found = _mean_cross_entropy(call, "labels", logits, target)
        return _unless(missing, found)
    with Named("labels", labels, hidden.shape[:-1], decoder.weight.shape[0]):
        found = _mean(
            lambda target: _linear_cross_entropy(rows, decoder.weight, target, decoder.bias, backend=call.backend),
            target,
            call.correct,
        )
    return _unless(missing, found)


def _unless(missing: Tensor | None, loss: Tensor) -> Tensor:
    """The loss, or NaN with zero gradients where labels are missing from it: a graph cannot raise an error."""
    return loss if missing is None else torch.where(missing, torch.full_like(loss, float("nan")), loss)


def masked_lm_rows(call: LabelledCall) -> tuple[Any, Tensor]:
    output = MaskedLMOutput(hidden_states=call.output.hidden_states, attentions=call.output.attentions)
    return output, _labelled_rows(call)


def sequence_classification(call: Call, of_classes: Callable[..., Tensor] = _mean_cross_entropy) -> Tensor:
    config, num_labels, logits = call.model.config, call.model.num_labels, call.output.logits
    labels = call.arguments["labels"].to(logits.device)
    if config.problem_type is None:  # inferred from the first labels and kept, as transformers does
        if num_labels == 1:
            config.problem_type = "regression"
        elif num_labels > 1 and labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "regression":
        if num_labels == 1:
            logits, labels = logits.squeeze(), labels.squeeze()
        with Named("labels", labels, logits.shape):
            return _mean_squared_error(logits, labels)
    if config.problem_type == "single_label_classification":
        return of_classes(call, "labels", logits, labels)
    if config.problem_type == "multi_label_classification":
        with Named("labels", labels, logits.shape, floating=True):
            if not call.correct or not labels.is_floating_point():
                return _binary_cross_entropy(logits, labels, backend=call.backend)
            dtype = torch.promote_types(logits.dtype, labels.dtype)
            if torch.is_autocast_enabled(logits.device.type):  # which lists this loss among its float32 functions
                dtype = torch.float32
            return _mean_binary_cross_entropy(call, logits, labels, None).to(dtype)
    raise ValueError(
        f"config.problem_type: got {config.problem_type!r}; allowed are 'regression', 'single_label_classification', "
        "'multi_label_classification' or None"
    )


def _mean_squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """mse_loss in the dtype that it promotes both to, as before 2.9 its backward takes no two dtypes."""
    dtype = torch.promote_types(logits.dtype, labels.dtype)
    if torch.is_autocast_enabled(logits.device.type):  # which lists this loss among its float32 functions
        dtype = torch.promote_types(dtype, torch.float32)
    return torch.nn.functional.mse_loss(logits.to(dtype), labels.to(dtype))


def counted_masked_lm(call: Call) -> Tensor:
    """Transformers' ForMaskedLMLoss, which is in fp32; num_items_in_batch is left to the caller."""
    return _mean_cross_entropy(call, "labels", call.output.logits.float(), call.arguments["labels"])


def counted_masked_lm_rows(call: LabelledCall) -> tuple[Any, Tensor]:
    dtype = call.output.last_hidden_state.dtype
    if dtype not in (torch.float16, torch.bfloat16):
        return masked_lm_rows(call)
    with torch.autocast(call.output.last_hidden_state.device.type, dtype):  # under which the loss is in fp32
        return masked_lm_rows(call)


def inferred_classification(call: Call) -> Tensor:
    """DeBERTa's: without a problem_type, the labels of each call tell, and a negative class index is ignored."""
    logits, labels = call.output.logits, call.arguments["labels"].to(call.output.logits.device)
    if call.model.config.problem_type is not None:
        return sequence_classification(call)
    if call.model.num_labels == 1:
        if not labels.is_floating_point():  # logits become of their dtype
            raise ValueError(f"labels: got {labels.dtype}; allowed are floating dtypes: the number to predict")
        with Named("labels", labels.view(-1), torch.Size([logits.numel()])):
            call.output.logits = logits.view(-1).to(labels.dtype)  # which transformers returns, too
            return torch.nn.functional.mse_loss(call.output.logits, labels.view(-1))
    if labels.dim() == 1 or labels.shape[-1] == 1:
        target = labels.long().masked_fill(labels < 0, IGNORE)
        with Named("labels", target, logits.shape[:-1], logits.shape[-1]):
            # 0 where nothing is labelled, whatever `loss` says
            return _mean(
                lambda index: _cross_entropy(logits.float(), index, backend=call.backend), target.view(-1), True
            )
    with Named("labels", labels, logits.shape):
        return _cross_entropy(logits, labels.to(logits.dtype), backend=call.backend)


def question_answering(call: Call, mean: Callable[..., Tensor] = _mean_cross_entropy) -> Tensor:
    length = call.output.start_logits.shape[1]
    starts = call.output.start_logits
    shown = tokens(call.arguments, starts.shape, starts.device) if call.correct else None
    losses = []
    for name in ("start", "end"):
        argument = f"{name}_positions"
        positions = call.arguments[argument]
        if positions.dim() > 1:  # DataParallel adds a dimension
            positions = positions.squeeze(-1)
        if positions.shape != call.output.start_logits.shape[:1]:
            raise shape_error(argument, positions, call.output.start_logits.shape[:1])
        # a position outside the (truncated) input is ignored: it clamps to the one index past the logits
        logits, positions = getattr(call.output, f"{name}_logits"), positions.clamp(0, length)
        if shown is not None:  # nor does an answer lie in the padding, whose logits mean nothing
            shown, positions = shown.to(logits.device), positions.to(logits.device)
            logits = logits.masked_fill(~shown, torch.finfo(logits.dtype).min)
            inside = torch.nn.functional.pad(shown, (0, 1)).gather(1, positions.long()[:, None])[:, 0]
            positions = torch.where(inside, positions, length)
        losses.append(mean(call, argument, logits, positions, ignore_index=length))
    return (losses[0] + losses[1]) / 2


def replaced_token_detection(call: Call) -> Tensor:
    logits = call.output.logits
    logits = logits.view(-1, logits.shape[1])
    labels, mask = call.arguments["labels"].to(logits.device), call.arguments.get("attention_mask")
    shown = tokens(call.arguments, logits.shape, logits.device)
    if mask is not None:  # 1 alone shows a token, in any shape of as many elements
        shown = for_batch(mask.view(-1, logits.shape[1]), logits.shape[0]) == 1
    shown = shown if shown is None else shown.to(logits.device)
    with Named("labels", labels, logits.shape):
        if labels.shape != logits.shape:
            raise ValueError("labels and logits differ in shape")  # Named puts what is allowed in its place
        return _mean_binary_cross_entropy(call, logits, labels, shown)


def _mean_binary_cross_entropy(call: Call, logits: Tensor, labels: Tensor, shown: Tensor | None) -> Tensor:
    """Binary cross-entropy in float32, averaged where `shown` is True and, under "correct", the label is not IGNORE."""
    if call.correct:
        labelled = labels != IGNORE
        shown = labelled if shown is None else shown & labelled
    if shown is None:
        return _binary_cross_entropy(logits.float(), labels.float(), backend=call.backend)
    # Weights in place of a gather: no size depends on the data. In fp32, as the sum may pass fp16's largest number.
    target = torch.where(shown, labels, torch.zeros_like(labels)).float()
    total = _binary_cross_entropy(logits.float(), target, weight=shown.float(), reduction="sum", backend=call.backend)
    count = shown.sum()
    return total / (count.clamp(min=1) if call.correct else count)


def causal_lm(call: Call) -> Tensor:
    """Transformers' ForCausalLMLoss, which honours num_items_in_batch by itself."""
    logits, arguments = call.output.logits, call.arguments
    ignore_index = arguments.get("ignore_index", IGNORE)
    name = "labels" if arguments.get("shift_labels") is None else "shift_labels"
    labels = arguments[name]
    if name == "labels":
        if labels.dim() != 1 and labels.shape != logits.shape[:-1]:  # they are shifted along the last dim
            raise shape_error(name, labels, logits.shape[:-1])
        labels = torch.nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    logits = logits.float()  # as transformers does before this loss, and so returns it in fp32
    return cross_entropy_of_items(call, name, logits, labels, ignore_index)


def cross_entropy_of_items(call: Call, name: str, logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Cross-entropy, summed over labels and divided by num_items_in_batch; their mean without that number."""
    num_items = call.arguments.get("num_items_in_batch")
    if num_items is None:
        return _mean_cross_entropy(call, name, logits, labels, ignore_index)
    labels = labels.to(logits.device)
    with Named(name, labels, logits.shape[:-1], logits.shape[-1], ignore_index):
        rows = logits.reshape(-1, logits.shape[-1])
        total = _cross_entropy(
            rows, labels.reshape(-1), ignore_index=ignore_index, reduction="sum", backend=call.backend
        )
    if isinstance(num_items, Tensor):
        num_items = num_items.to(total.device)
        return total / (num_items.clamp(min=1) if call.correct else num_items)
    return total / (max(num_items, 1) if call.correct else num_items)


def image_classification(call: Call) -> Tensor:
    """Transformers' ForSequenceClassificationLoss, which honours num_items_in_batch for class indices alone."""
    return sequence_classification(call, _mean_cross_entropy if call.correct else cross_entropy_of_items)
