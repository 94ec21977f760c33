"""The user's own model and texts, as bench.own takes them: loaded, made ready for a task, and cut into batches."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TRAINS = ("train", "fine-tune")
"""Tasks that are steps of training."""
MASKED = 0.15
"""The share of real tokens that a masked language model predicts."""

Batch = dict[str, Tensor]


class InputError(ValueError):
    """What was given cannot be measured; the message says what, and what is allowed."""


@dataclass(frozen=True)
class Texts:
    """Lines of a file; labels where every line has one."""

    lines: list[str]
    labels: list[str] | None


def read_texts(path: Path, most: int) -> Texts:
    """The first `most` lines that are not empty: a text each, or label, tab and text.

    Raises:
        InputError: no such file, it is not UTF-8, or it holds no text.
    """
    if not path.is_file():
        raise InputError(f"--texts: got {path}, which is no file; allowed is a file with a text on each line")
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(f"--texts: got {path}, which is not UTF-8 (byte {problem.start}); allowed is UTF-8") from None
    lines = [line.strip("\r") for line in content.split("\n") if line.strip()][:most]
    if not lines:
        raise InputError(f"--texts: got {path}, which holds no text; allowed is a text on each line")
    parts = [line.partition("\t") for line in lines]
    if all(tab and label.strip() and text.strip() for label, tab, text in parts):
        return Texts([text.strip() for _, _, text in parts], [label.strip() for label, _, _ in parts])
    return Texts([line.strip() for line in lines], None)


# ----------------------------------------------------------------------------------------------------------- model


def load(name: str, task: str | None, dtype: torch.dtype, labels: list[str] | None = None) -> tuple[Any, Any, str]:
    """(model, tokenizer, task) of a folder, or of a name that transformers knows.

    The model is of the class that its config names. Without a task, one with a head for sequences classifies, and any
    other embeds; what embeds has no head. A model without a head trains as a masked language model; to fine-tune it
    gets a new head, with a class for each of `labels`.

    Raises:
        InputError: transformers cannot load it, or it cannot do this task.
    """
    import transformers
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    if task == "fine-tune" and labels is None:
        raise InputError(
            "--task: got fine-tune, and not every text has a label; allowed is label, tab and text on each line"
        )

    try:
        config = AutoConfig.from_pretrained(name)
        own = (getattr(config, "architectures", None) or [""])[0]
        classifies = own.endswith("ForSequenceClassification")
        task = task or ("classify" if classifies else "embed")
        if task == "classify" and not classifies:
            raise InputError(
                f"--task: got classify, and {name} holds a {own or 'model without a head'}; allowed is embed or train, "
                "or a model ...ForSequenceClassification"
            )
        loader: Any = getattr(transformers, own, AutoModel)
        if task == "embed":
            loader = AutoModel
        elif task == "train" and not (classifies or own.endswith("ForMaskedLM")):
            loader = AutoModelForMaskedLM
        more: dict[str, Any] = {}
        if task == "fine-tune" and not classifies:
            loader, more = AutoModelForSequenceClassification, {"num_labels": len(set(labels or ()))}
        model = loader.from_pretrained(name, dtype=dtype, **more)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as problem:
        first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise InputError(f"MODEL: got {name}, which transformers cannot load: {first}") from None
    return model.eval(), tokenizer, task


# --------------------------------------------------------------------------------------------------------- batches


def batches_of(
    texts: Texts,
    model: nn.Module,
    tokenizer: Any,
    size: int,
    max_length: int,
    task: str,
    device: torch.device,
    pad: str = "longest",
) -> list[Batch]:
    """Batches in the order of the texts, padded to their longest or to `max_length`; for training with labels."""
    found = []
    draw = torch.Generator().manual_seed(0)
    for at in range(0, len(texts.lines), size):
        lines = texts.lines[at : at + size]
        padding = "max_length" if pad == "max" else True
        batch = dict(tokenizer(lines, padding=padding, truncation=True, max_length=max_length, return_tensors="pt"))
        if task in TRAINS:
            batch |= _labels(batch, texts.labels and texts.labels[at : at + size], texts.labels, model, tokenizer, draw)
        found.append({name: value.to(device) for name, value in batch.items()})
    return found


def _labels(
    batch: Batch, given: list[str] | None, all_labels: list[str] | None, model: Any, tokenizer: Any, draw: Any
) -> Batch:
    ids, config = batch["input_ids"], model.config
    if type(model).__name__.endswith("ForSequenceClassification"):
        classes = config.num_labels
        if given is None or all_labels is None:  # what a label says takes no time
            chosen = torch.randint(classes, (len(ids),), generator=draw)
        else:
            numbers = {label: i for i, label in enumerate(sorted(set(all_labels)))}
            numbers |= {label: int(i) for label, i in (config.label2id or {}).items() if label in numbers}
            chosen = torch.tensor([numbers[label] for label in given]) % max(1, classes)
        if config.problem_type == "multi_label_classification":  # a score a class
            return {"labels": torch.nn.functional.one_hot(chosen, classes).float()}
        return {"labels": chosen.float() if classes == 1 else chosen}
    wanted = (torch.rand(ids.shape, generator=draw) < MASKED) & batch["attention_mask"].bool()
    wanted[:, 0] |= ~wanted.any(1)
    mask = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.pad_token_id
    return {"labels": ids.masked_fill(~wanted, -100), "input_ids": ids.masked_fill(wanted, mask)}


def real_share(batches: Sequence[Batch]) -> float:
    """Real tokens among all, padding included."""
    masks = [batch["attention_mask"] for batch in batches]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
