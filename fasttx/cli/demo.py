"""``python -m fasttx demo``: the main job on real input, unpatched beside patched.

Real pretrained BERT weights embed English sentences of very different lengths, then a classifier is fine-tuned from a
train.txt and a dev.txt; each is done by transformers as it is (sdpa) and by the same model after `fasttx.patch`.
Results go to a table, then to demo.json and loss.png in the output directory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LINE_SECONDS = 10.0
"""Without a terminal, how often a line tells how far a part is."""

# ---------------------------------------------------------------------------------------------------------- progress


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Yields what begins a part and returns what ends each of its units: bars in a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield lambda name, total: _lines(console, name, total)
        return
    count = (TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.completed}/{task.total}"))
    columns = (SpinnerColumn(), *count, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:

        def begin(name: str, total: int) -> Callable[[], None]:
            for earlier in progress.tasks:  # a part whose time was up ends before its last unit
                progress.update(earlier.id, total=earlier.completed)
            task = progress.add_task(name, total=total)
            return lambda: progress.advance(task)

        yield begin


def _lines(console: Console, name: str, total: int) -> Callable[[], None]:
    from ..bench.progress import duration

    begun = shown = time.monotonic()
    done = 0
    console.print(f"{name}: {total}" if total > 1 else name, highlight=False)

    def advance() -> None:
        nonlocal done, shown
        done, now = done + 1, time.monotonic()
        if done < total and now - shown >= LINE_SECONDS:
            left = duration((now - begun) / done * (total - done))
            console.print(f"{name}: {done} of {total}, about {left} left", highlight=False)
            shown = now

    return advance


# ------------------------------------------------------------------------------------------------------------- threads


@contextmanager
def _free_cores(console: Console) -> Iterator[None]:
    """As many threads as cores are free, and says so: threads wait for each other, and for a core that is taken.

    A thread that waits gives its core away, where torch is not imported yet and nobody has chosen otherwise.
    """
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("KMP_BLOCKTIME", "0")):
        os.environ.setdefault(name, value)
    from ..bench import cores

    allowed, free = cores.allowed(), cores.free()
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(before, free)))
    threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        text = f"{free} of {allowed} cores are free; {threads} thread{'s' * (threads > 1)}."
        if free < allowed:
            text += " Other work takes the rest, so times will vary."
        console.print(text, highlight=False)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------------------- table


def show(result: dict[str, Any], console: Console) -> None:
    """Prints the table, and what it means, in 80 columns."""
    from .demo_run import PATCHED, PLAIN

    environment, embedding, training = result["environment"], result["embedding"], result["training"]
    where = environment["device"]
    if where == "cpu":
        where = f"CPU ({environment['cpu']})"
    console.print(f"fasttx demo, {result['dtype']}, {where}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", PLAIN, PATCHED, "speed-up"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    steps = len(training["losses"][PLAIN])
    for name, times, turns in (
        (f"embed {embedding['n_sentences']} texts, ms", embedding["times"], "rounds"),
        ("training step, ms", training["times"], "steps"),
    ):
        low, high = times["speedup_low"], times["speedup_high"]
        ratio = f"{times['speedup']:.2f}x" if times["clear"] else "unclear"
        table.add_row(name, *(f"{times['median'][arm]:,.0f}" for arm in (PLAIN, PATCHED)), ratio)
        ranges = [f"{times['low'][arm]:,.0f} to {times['high'][arm]:,.0f}" for arm in (PLAIN, PATCHED)]
        half = f"  half of {times['turns']} {turns}" if times["turns"] > 3 else f"  in {times['turns']} {turns}"
        table.add_row(half, *ranges, f"{low:.2f}x to {high:.2f}x", style="dim")
    last = {arm: each[-1] for arm, each in training["losses"].items()}
    table.add_row(f"loss at step {steps}", *(f"{last[arm]:.4f}" for arm in (PLAIN, PATCHED)), "")
    accuracy = training["dev_accuracy"]
    table.add_row(f"accuracy on {training['n_dev']} texts", *(f"{accuracy[arm]:.3f}" for arm in (PLAIN, PATCHED)), "")
    console.print(table)
    for line in _remarks(result):
        console.print(line, highlight=False)


def _remarks(result: dict[str, Any]) -> list[str]:
    """Sentences under the table."""
    embedding, training, settings = result["embedding"], result["training"], result["settings"]
    steps = max(map(len, training["losses"].values()))
    found = []
    unclear = [name for name, part in (("embedding", embedding), ("training", training)) if not part["times"]["clear"]]
    if unclear:
        found.append(
            f"[yellow]The speed of {' and '.join(unclear)} is unclear:[/] the measurement disagrees with "
            "itself, or made fewer than three turns. Other work takes the cores, or the difference is small. "
            "Run it again when the machine is idle."
        )
    short = [
        f"{done} of {wanted} {what}"
        for done, wanted, what in (
            (embedding["n_sentences"], settings["n_sentences"], "texts"),
            (embedding["times"]["turns"], settings["rounds"], "rounds"),
            (steps, settings["steps"], "steps"),
            (training["n_dev"], min(settings["n_dev"], result["corpus"]["n_dev"]), "texts to judge by"),
        )
        if done < wanted
    ]
    if short:
        found.append(f"Time was short: {', '.join(short)}. --seconds gives it more.")
    found.append(
        f"Results: embeddings differ by at most {embedding['max_error']:.1e} (smallest cosine "
        f"{embedding['min_cosine']:.7f}), the loss curves by at most {training['max_loss_gap']:.1e}. Dropout is 0: "
        "with dropout each arm would draw masks of its own."
    )
    found.append(
        f"Padding: {embedding['real_share']:.0%} of the embedded tokens are real, {training['real_share']:.0%} of "
        "those in training. fasttx skips the rest."
    )
    corpus = result["corpus"]
    found.append(f"Accuracy: guessing the commonest of {len(corpus['labels'])} labels gives {corpus['majority']:.3f}.")
    return found


# ------------------------------------------------------------------------------------------------------------- command


def demo(
    train: Annotated[Path | None, typer.Option(help="Training corpus: a label, a tab and a text on each line.")] = None,
    dev: Annotated[Path | None, typer.Option(help="Corpus to judge by, in the same form.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of a BERT checkpoint: config.json, model.safetensors, vocab.txt.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for demo.json and loss.png.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the classifier's head and batches.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each arm.  [default: 60]")] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="About how long to measure; where it is too short there are fewer steps.")
    ] = 180.0,
    tiny: Annotated[bool, typer.Option("--tiny", help="A few sentences and three steps: does it run at all?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Embed real sentences and fine-tune a classifier, unpatched and patched: results, times, loss curves.

    Takes about two minutes on two idle cores; --seconds bounds it elsewhere.
    """
    console, complaints = Console(), Console(stderr=True)
    try:
        with _free_cores(complaints), _progress(complaints) as begin:
            from transformers.utils import logging as transformers_logging

            from ..bench.progress import duration
            from .demo_arms import Settings
            from .demo_run import run, write

            transformers_logging.set_verbosity_error()  # its report that the classifier's head is new is expected here
            transformers_logging.disable_progress_bar()
            settings = Settings.tiny(seed) if tiny else Settings(seed=seed)
            settings.steps, settings.seconds = steps or settings.steps, seconds
            complaints.print(f"Measuring takes {duration(seconds)} at most (--seconds).", highlight=False)
            result = run(begin, train, dev, model, out, settings)
    except Exception as problem:
        _refuse(problem, complaints)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        show(result, console)
    try:
        written = write(result, out)
    except OSError as problem:
        _refuse(problem, complaints)
    if result["plot"] is None:
        complaints.print("No picture: matplotlib is not installed (pip install 'fasttx\\[bench]').", highlight=False)
    if not as_json:
        console.print(f"Written: {escape(', '.join(map(str, written)))}", highlight=False, soft_wrap=True)


def _refuse(problem: Exception, complaints: Console) -> None:
    """One line for what a user can mend, and exit code 2; anything else is raised."""
    import fasttx

    from ..bench.corpus import InputError

    if not isinstance(problem, (InputError, fasttx.BackendError, OSError)):
        raise problem
    complaints.print(f"[bold red]error:[/] {escape(str(problem))}", soft_wrap=True, highlight=False)
    raise typer.Exit(2) from None
