"""``fasttx verify``: whether a checkpoint computes the same when it is patched, and what its ops run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # it takes seconds, which --help does without
    import torch

SENTENCES = (
    "A short one.",
    "The batch has sentences of very different lengths, so that most of its rows are padded at the end.",
    "Does a padded token change what a real one means?",
    "It must not: padding is masked in attention, and left out of every loss.",
)
DTYPES = ("float32", "bfloat16", "float16")


def _load(directory: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model, of the class that its config names, and its tokenizer."""
    import transformers
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    import fasttx.models  # noqa: F401  # by which int8 models are loaded too

    logging.disable_progress_bar()
    if not (directory / "config.json").is_file():
        raise typer.BadParameter(
            f"{directory} has no config.json; expected the directory of a saved transformers model"
        )
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        name = (config.architectures or [""])[0]
        cls = getattr(transformers, name, None) if name else AutoModel
        if cls is None:
            raise ValueError(f"config.json names the architecture {name!r}, which transformers does not have")
        model = cls.from_pretrained(directory, local_files_only=True, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise typer.BadParameter(f"{directory}: {first}") from None
    return model, tokenizer


def _lines(text: Path | None) -> list[str]:
    if text is None:
        return list(SENTENCES)
    if not text.is_file():
        raise typer.BadParameter(f"--text {text}: no such file; expected a line for each sentence")
    lines = [line for line in text.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][:32]
    if not lines:
        raise typer.BadParameter(f"--text {text}: holds no sentence; expected a line for each")
    return lines


def verify(
    directory: Annotated[Path, typer.Argument(help="Folder of a saved transformers model and its tokenizer.")],
    text: Annotated[Path | None, typer.Option(help="A sentence on each line; the first 32 are taken.")] = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...", show_default="cuda if there is one, else cpu")] = "",
    backend: Annotated[str, typer.Option(help="auto, cuda, triton or torch.")] = "auto",
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of the longest sentence.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Patch a saved model and compare it with its unpatched self, against a higher precision.

    Prints what was replaced, the error of every output beside that of the unpatched model and what is allowed, and
    which backend each op took in one call, and why. Exit code 1 means that an error is larger than allowed.
    """
    import torch

    import fasttx

    if dtype not in DTYPES:
        raise typer.BadParameter(f"--dtype: got {dtype!r}; allowed are {', '.join(DTYPES)}")
    model, tokenizer = _load(directory, getattr(torch, dtype))
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = model.to(torch.device(place)).eval()
    except RuntimeError as problem:  # no such device, or too little memory there
        raise typer.BadParameter(f"--device {place}: {str(problem).splitlines()[0]}") from None
    lines = _lines(text)
    tokenizer.model_max_length = min(max_length, tokenizer.model_max_length)
    try:
        report = fasttx.patch(model, backend=backend)
        found = fasttx.verify(model, lines, tokenizer=tokenizer)
        taken = fasttx.explain(model, lines, tokenizer=tokenizer)
    except (ValueError, fasttx.BackendError) as problem:
        raise typer.BadParameter(str(problem)) from None
    if as_json:
        typer.echo(json.dumps({"report": report.to_dict(), "verify": found.to_dict(), "explain": taken.to_dict()}))
    else:
        typer.echo(f"{report}\n\n{found}\n\n{taken}")
    raise typer.Exit(int(not found.ok))
