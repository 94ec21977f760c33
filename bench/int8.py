"""How near int8 comes to float32 on real weights, by the ways of :class:`fasttx.Int8Config`.

    python -m fasttx bench int8 [--out FILE] [--smooth 0.5 0.6] [--quick]

all-MiniLM-L6-v2 embeds texts that no calibration has seen (bench/int8_texts.py). Each way is compared with the model
in float32: by the cosine of each embedding, and by the rank correlation (Spearman) of the similarities of all pairs.
``gain`` is the float32 model's processor time, patched likewise, over the way's: the least of several turns.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fasttx
from fasttx.models import layout

from . import corpus
from .cpu import least_times
from .int8_texts import Text, held_back, seen, selection
from .options import parser_of
from .own_arms import embedding
from .progress import Watch, bound_of, unwatched, watcher
from .progress import deadline as deadline_in
from .settings import Settings
from .table import write

COLUMNS = (
    *("model", "texts", "way", "status", "mean_cosine", "least_cosine", "rank_correlation"),
    *("least_like", "cpu_ms", "gain"),
)
MEAN, LEAST, RANK = 0.998, 0.985, 0.998
"""What one of the ways has to reach: mean and least cosine, rank correlation."""
LONGEST = 256
"""Tokens of the longest text that is not cut."""
BATCH = 16
FLOAT = "float32"
CAPTURED = "captured"
HEADER = ["", f"{'mean':>8}", f"{'least':>8}", f"{'ranks':>8}", f"{'gain':>7}", "least like its float32"]

Batch = dict[str, Tensor]
Ways = dict[str, tuple[fasttx.Int8Config, bool]]
"""name -> the config, and whether the model is captured."""


def ways_of(alphas: Sequence[float]) -> Ways:
    """The ways that are compared."""
    ways = {"int8": (fasttx.Int8Config(), False), "int8, static": (fasttx.Int8Config(activation="static"), False)}
    for alpha in alphas:
        ways[f"int8, smooth {alpha:g}"] = (fasttx.Int8Config(smooth=alpha), False)
    last = alphas[-1]
    ways[f"int8, static, smooth {last:g}"] = (fasttx.Int8Config(activation="static", smooth=last), False)
    ways[f"int8, {CAPTURED}"] = (fasttx.Int8Config(), True)
    ways[f"int8, smooth {last:g}, {CAPTURED}"] = (fasttx.Int8Config(smooth=last), True)
    return ways


def batches_of(tokenizer: Any, texts: Sequence[str]) -> tuple[list[Batch], list[int]]:
    """Batches of texts of like length, and the place of each text among the given ones."""
    rows = tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batches = []
    for first in range(0, len(order), BATCH):
        some = [texts[i] for i in order[first : first + BATCH]]
        batches.append(dict(tokenizer(some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")))
    return batches, order


def embed(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    with torch.inference_mode():
        found = [embedding(model(**b).last_hidden_state.float(), b["attention_mask"]) for b in batches]
    return nn.functional.normalize(torch.cat(found).double(), dim=-1)


def similarities(embeddings: Tensor) -> Tensor:
    """The cosine of each pair of texts."""
    first, second = torch.triu_indices(len(embeddings), len(embeddings), 1)
    return (embeddings @ embeddings.T)[first, second]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of numbers without ties."""
    ranks = torch.stack([each.argsort().argsort().double() for each in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def accuracy(found: Tensor, exact: Tensor) -> dict[str, Any]:
    """The columns of accuracy, and which embedding is the furthest off."""
    cosines = (found * exact).sum(-1)
    return {
        "mean_cosine": float(cosines.mean()),
        "least_cosine": float(cosines.min()),
        "rank_correlation": rank_correlation(similarities(found), similarities(exact)),
        "furthest": int(cosines.argmin()),
    }


def reached(row: Mapping[str, Any]) -> bool:
    return bool(
        row["mean_cosine"] >= MEAN and row["least_cosine"] >= LEAST and row["rank_correlation"] >= RANK
    )  # a NaN is below


def measure(texts: Sequence[Text], settings: Settings, ways: Ways, watch: Watch = unwatched) -> list[dict[str, Any]]:
    """A row for the float32 model and for each way.

    Raises:
        InputError: the weights are not installed.
    """
    from transformers import BertModel

    directory = corpus.model_directory(None)
    tokenizer = corpus.load_tokenizer(directory)
    base = corpus.load_model(BertModel, directory, attn_implementation="sdpa", add_pooling_layer=False).eval()
    batches, order = batches_of(tokenizer, [text for _, text in texts])
    exact = embed(base, batches)
    with fasttx.calibrate(base), torch.inference_mode():
        for batch in batches_of(tokenizer, seen())[0]:
            base(**batch)
    calls: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, model in _models(base, ways, watch):
        rows[name] = {"model": "all-MiniLM-L6-v2", "texts": len(texts), "way": name}
        if settings.late():
            rows[name]["status"] = "not run: time budget"
            continue
        found = accuracy(embed(model, batches), exact)
        furthest = " ".join(texts[order[found.pop("furthest")]].text.split())[:24]
        rows[name] |= {"status": "ok", "least_like": furthest, **found}
        calls[name] = lambda model=model: embed(model, batches)
    for name, (_, cpu) in least_times(calls, settings.rounds, settings.left()).items():
        rows[name]["cpu_ms"] = cpu / len(texts)
    for row in rows.values():
        if "cpu_ms" in row and "cpu_ms" in rows[FLOAT]:
            row["gain"] = rows[FLOAT]["cpu_ms"] / row["cpu_ms"]
    return list(rows.values())


def _models(base: nn.Module, ways: Ways, watch: Watch) -> Iterator[tuple[str, nn.Module]]:
    """The float32 model and each way, patched."""
    plain = copy.deepcopy(base)
    fasttx.patch(plain)
    yield FLOAT, plain
    for name in watch(list(ways), str):
        config, captured = ways[name]
        model = copy.deepcopy(base)
        fasttx.quantize(model, config)
        fasttx.patch(model)
        if captured:
            fasttx.capture(model)
        yield name, model


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as it is printed."""
    if row["status"] != "ok":
        return [row["way"], "", "", "", "", row["status"]]
    figures = [f"{row[name]:8.4f}" for name in ("mean_cosine", "least_cosine", "rank_correlation")]
    return [row["way"], *figures, f"{row['gain']:6.2f}x" if "gain" in row else "", row["least_like"]]


def run(
    out: Path,
    *,
    alphas: Sequence[float] = (0.6,),
    quick: bool = False,
    seconds: float | None = None,
    say: Callable[[str], None] = print,
    watch: Watch = unwatched,
) -> list[dict[str, Any]]:
    """Measures all ways and writes `out`; with `quick` on an eighth of the texts."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would report the pooler that is left out; no answer uses one
    settings = Settings.of(torch.device("cpu"), 2 if quick else 4, False, deadline_in(seconds))
    texts = held_back()
    if quick:
        texts = selection(texts, 8)
    rows = measure(texts, settings, ways_of(alphas), watch)
    write(rows, COLUMNS, out)
    say(f"all-MiniLM-L6-v2 on int8, {len(texts)} texts of 1 word to {LONGEST} tokens, beside float32:")
    say("\n".join(f"  {line}" for line in layout.table(HEADER, [cells(row) for row in rows])))
    best = [row["way"] for row in rows if row["status"] == "ok" and row["way"] != FLOAT and reached(row)]
    say(f"at least {MEAN} in the mean, {LEAST} each, ranks {RANK}: {'; '.join(best) or 'none'}")
    return rows


def main(arguments: list[str] | None = None, watch: Watch | None = None) -> int:
    parser = parser_of("int8")
    options = parser.parse_args(arguments)
    try:
        rows = run(
            options.out,
            alphas=options.smooth,
            quick=options.quick,
            seconds=bound_of(parser, options),
            watch=watch or watcher("bench int8"),
        )
    except corpus.InputError as problem:
        parser.error(str(problem))
    ways = [row for row in rows if row["status"] == "ok" and row["way"] != FLOAT]
    return int(not any(map(reached, ways)))


if __name__ == "__main__":
    sys.exit(main())
