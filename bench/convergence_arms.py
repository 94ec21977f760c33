"""One arm of a convergence run: trains one small BERT from random weights, alone in its process, and writes its curve.

``bench.convergence`` starts these. Every arm of a task has the same initial weights and the same batches in the same
order, made from fixed seeds before training; a digest of both goes into the result, so that this can be checked. What
`seed` changes are the masks of dropout alone. So the spread over seeds is the least noise that training with dropout
has: a fault cannot hide in the larger one of other weights or another order of batches, which both sides share.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fasttx
from fasttx.bench.corpus import TEXTS, read_pair
from fasttx.ops.registry import LAUNCHES

Batch = dict[str, Tensor]

TASKS = ("pretraining", "classification")
SHARED_SEED = 1234
"""Of the weights, the order of batches and the tokens that are masked: the same in every arm."""

HIDDEN, HEADS, LAYERS = 64, 2, 2
INITIAL_SPREAD = 0.1
"""Standard deviation of the initial weights. With BERT's 0.02, made for widths from 768, attention of so narrow a model
stays uniform for hundreds of steps, and a curve would say nothing about attention."""

BATCH, LENGTH = 16, 64
LEAST_COUNT = 30
"""Words that occur less often are spelt: with few entries a small model learns within some hundred steps to look at
neighbours, beyond how often each entry occurs."""

WARM_UP = 20
LEARNING_RATE = {"pretraining": 2e-3, "classification": 1e-3}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training run.

    Attributes:
        task: one of `TASKS`.
        patched: train after ``fasttx.patch(model, unpad=True)``; "auto" leaves so small a model padded on a CPU.
        seed: of the dropout masks.
        dropout: of hidden states and of attention's probabilities.
        steps: optimiser steps.
        fault: a name in `FAULTS`: what to break after patching; "" breaks nothing.
    """

    task: str
    patched: bool
    seed: int = 0
    dropout: float = 0.1
    steps: int = 300
    fault: str = ""

    @property
    def name(self) -> str:
        kind = self.fault or ("patched" if self.patched else "plain")
        return f"{self.task}-{kind}-" + (f"seed{self.seed}" if self.dropout else "exact")


# ------------------------------------------------------------------------------------------------------------- faults

Attention = Callable[..., Any]


def _wrong_scale(attention: Attention) -> Attention:
    def broken(*args: Any, scaling: float, **options: Any) -> Any:
        return attention(*args, scaling=1.5 * scaling, **options)

    return broken


def _leak(attention: Attention) -> Attention:
    """Packed sequences see each other."""

    def broken(module: Any, query: Tensor, *args: Any, **options: Any) -> Any:
        total = query.shape[2]
        bounds = torch.tensor([0, total], dtype=torch.int32, device=query.device)
        options |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds)
        options |= dict.fromkeys(("max_length_q", "max_length_k"), total)
        return attention(module, query, *args, **options)

    return broken


def _lost_gradient(attention: Attention) -> Attention:
    """The values get no gradient."""

    def broken(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
        return attention(module, query, key, value.detach(), *args, **options)

    return broken


def _no_dropout(attention: Attention) -> Attention:
    def broken(*args: Any, dropout: float, **options: Any) -> Any:
        return attention(*args, dropout=0.0, **options)

    return broken


def _another_mask(attention: Attention) -> Attention:
    """Backward draws another mask than forward did."""

    def broken(*args: Any, **options: Any) -> Any:
        with torch.no_grad():
            output = attention(*args, **options)[0]
        other, *rest = attention(*args, **options)
        return other + (output - other.detach()), *rest

    return broken


FAULTS = {
    "wrong-scale": _wrong_scale,
    "leak": _leak,
    "lost-gradient": _lost_gradient,
    "no-dropout": _no_dropout,
    "another-mask": _another_mask,
}
"""Ways to break attention of a patched model."""


def break_attention(fault: str) -> None:
    """For the rest of this process; after a patch, which registers the function."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS["fasttx"] = FAULTS[fault](ALL_ATTENTION_FUNCTIONS["fasttx"])


# --------------------------------------------------------------------------------------------------------------- data


def vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Entries of a WordPiece tokenizer: frequent words, and pieces of one character for the rest."""
    words = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    characters = sorted({character for word in words for character in word})
    frequent = sorted(word for word, n in words.items() if n >= LEAST_COUNT and len(word) > 1)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries = [*special, *characters, *(f"##{character}" for character in characters), *frequent]
    return {entry: i for i, entry in enumerate(entries)}


def _drawn(n: int, steps: int) -> list[list[int]]:
    """For each step numbers below n: whole epochs, each in an order of its own."""
    draw = random.Random(SHARED_SEED)
    order: list[int] = []
    while len(order) < steps * BATCH:
        order += draw.sample(range(n), n)
    return [order[i * BATCH : (i + 1) * BATCH] for i in range(steps)]


def _pretraining(tokenizer: Any, texts: list[str], steps: int) -> list[Batch]:
    """Batches of sentences, as ragged as they are, with 15 % of the tokens to be predicted, drawn by torch's generator
    (the collator's own `seed` refuses to work in a child process)."""
    from transformers import DataCollatorForLanguageModeling

    sentences = [s for text in texts for s in re.split(r"(?<=[.:;]) ", text) if len(s.split()) >= 4]
    ids = tokenizer(sentences, truncation=True, max_length=LENGTH)["input_ids"]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    return [dict(collator([{"input_ids": ids[i]} for i in chosen])) for chosen in _drawn(len(ids), steps)]


def _labelled(tokenizer: Any, pairs: list[tuple[str, str]], labels: list[str]) -> Batch:
    texts = [text for _, text in pairs]
    batch = dict(tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"))
    return {**batch, "labels": torch.tensor([labels.index(label) for label, _ in pairs])}


def load(arm: Arm, data: Path = TEXTS) -> tuple[nn.Module, list[Batch], list[Batch]]:
    """The model with its initial weights, the batches of all steps, and those of dev.txt (none in pretraining)."""
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizerFast

    train, dev, labels = read_pair(data / "train.txt", data / "dev.txt")
    entries = vocabulary(text for _, text in train)
    tokenizer = BertTokenizerFast(vocab=entries, do_lower_case=True)
    config = BertConfig(
        vocab_size=len(entries),
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=LENGTH,
        num_labels=len(labels),
        initializer_range=INITIAL_SPREAD,
        hidden_dropout_prob=arm.dropout,
        attention_probs_dropout_prob=arm.dropout,
    )
    torch.manual_seed(SHARED_SEED)
    if arm.task == "pretraining":
        return BertForMaskedLM(config), _pretraining(tokenizer, [text for _, text in train], arm.steps), []
    batches = [_labelled(tokenizer, [train[i] for i in chosen], labels) for chosen in _drawn(len(train), arm.steps)]
    held_out = [_labelled(tokenizer, dev[i : i + BATCH], labels) for i in range(0, len(dev), BATCH)]
    return BertForSequenceClassification(config), batches, held_out


def digest(model: nn.Module, batches: list[Batch]) -> str:
    """Of the weights and the batches."""
    found = hashlib.sha256()
    for items in (model.state_dict(), *batches):
        for name, tensor in sorted(items.items()):
            found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------- training


def leaves_padding_out(model: Any, batch: Batch) -> bool:
    """Whether the encoder runs on real tokens only: such hidden states are 0 at padding. Draws no random number."""
    padding = batch["attention_mask"] == 0
    model.eval()
    with torch.no_grad():
        hidden = model.base_model(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state
    return bool(padding.any()) and not bool(hidden[padding].any())


def train(arm: Arm, data: Path = TEXTS) -> dict[str, Any]:
    """Trains `arm` on the GPU if there is one, else on one thread of the CPU.

    Returns:
        The arm's fields and name; "losses" of each step, before its update; "accuracy" on dev.txt (None in
        pretraining); "digest" of initial weights and batches; "real": the share of real tokens; "replaced": what the
        patch put in place; "packed": see :func:`leaves_padding_out`; "without_logits": steps whose head computed the
        labelled rows alone; "launches": how often each operator of fasttx ran.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, batches, dev = load(arm, data)
    identity = digest(model, batches)
    model.to(device)
    batches, dev = ([{k: v.to(device) for k, v in batch.items()} for batch in part] for part in (batches, dev))
    report = fasttx.patch(model, unpad=True) if arm.patched else None
    if arm.fault:
        break_attention(arm.fault)
    packed = leaves_padding_out(model, batches[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE[arm.task])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    model.train()
    torch.manual_seed(arm.seed)
    LAUNCHES.clear()
    losses, without_logits = [], 0
    for batch in batches:
        output = model(**batch)
        loss = output.loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        without_logits += output.logits is None
    masks = [batch["attention_mask"] for batch in batches]
    return {
        **dataclasses.asdict(arm),
        "name": arm.name,
        "losses": losses,
        "accuracy": _accuracy(model, dev) if dev else None,
        "digest": identity,
        "real": float(sum(int(m.sum()) for m in masks)) / sum(m.numel() for m in masks),
        "replaced": sorted({row.after or "" for row in report.replaced}) if report else [],
        "packed": packed,
        "without_logits": without_logits,
        "launches": {f"{op} {backend}": n for (op, backend), n in sorted(LAUNCHES.items())},
    }


def _accuracy(model: nn.Module, batches: list[Batch]) -> float:
    model.eval()
    right = total = 0
    with torch.no_grad():
        for batch in batches:
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
            right += int((logits.argmax(-1) == batch["labels"]).sum())
            total += len(logits)
    return right / total
