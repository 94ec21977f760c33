"""fasttx on a CPU beside transformers, torch.compile, ONNX Runtime and OpenVINO.

    python -m fasttx bench cpu [--out FILE] [--threads N] [--kind ragged] [--quick]

Sentences are real ones, of the language reference that Python carries. MiniLM has its real weights where they are
installed; another model has random ones. Each arm is compared with transformers in float32 before it is timed: by the
cosine of each embedding, or by the norm of the difference of all gradients. All arms then take turns, in one process;
a figure is the least of several rounds over all batches of a case. ``gain`` is transformers' time in float32 over the
arm's: of the clock, or with one thread the processor's own, which other work on the machine changes little. ``cpu_ms``
counts the time of all threads; runtimes whose threads wait by spinning spend more of it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fasttx.bench import corpus
from fasttx.models import layout

from . import cores
from .contenders import build, config_of, gradient_error
from .cpu_arms import GRADIENT_ERROR, LEAST_COSINE, PLAIN, Arm, Batch, arms_of
from .cpu_cases import ALIKE, CASES, ONE, QUICK_CASES, REHEARSAL_CASES, CpuCase
from .environment import describe
from .options import parser_of
from .progress import Watch, bound_of, unwatched, watcher
from .progress import deadline as deadline_in
from .settings import Settings, one_line
from .table import write

COLUMNS = (
    *("model", "weights", "task", "kind", "batch", "real", "cpu", "threads", "arm", "precision"),
    *("status", "ms", "cpu_ms", "gain", "mean_cosine", "least_cosine", "gradient_error"),
)
LONGEST = 256
"""Tokens of the longest sentence that is not cut."""
BUSY = 0.3
"""Cores that other work may take while something is measured."""
HEADER = ["", f"{'ms':>9}", f"{'CPU ms':>9}", f"{'gain':>7}", f"{'accuracy':>10}"]


# ----------------------------------------------------------------------------------------------- models and batches


def model_of(case: CpuCase) -> tuple[nn.Module, str]:
    """The encoder of a case in float32, and where its weights are from."""
    from transformers import BertModel

    if case.model == "minilm" and case.layers is None:
        try:
            directory = corpus.model_directory(None)
        except corpus.InputError:
            pass
        else:
            options: dict[str, Any] = {"attn_implementation": "sdpa", "add_pooling_layer": False}
            return corpus.load_model(BertModel, directory, **options).eval(), "all-MiniLM-L6-v2"
    config = config_of(case.model, case.layers)
    return build(config, "encoder", torch.device("cpu"), torch.float32).eval(), "random"


def batches_of(case: CpuCase, vocab: int) -> list[Batch]:
    """The batches of a case, padded; the same at every call."""
    if case.model == "tiny":
        rows = [[5 + (7 * i + j) % (vocab - 5) for j in range(3 + 5 * i)] for i in range(case.size * case.batches)]
    else:
        rows = _encoded(1 if case.kind == ONE else 16 * case.size)
    if case.kind == ONE:
        return [_padded([row]) for row in rows[:: max(1, len(rows) // 8)]][:8]
    if case.kind == ALIKE:
        rows = sorted(rows, key=len)
        step = max(1, (len(rows) - case.size) // max(1, case.batches))
        return [_padded(rows[i * step : i * step + case.size]) for i in range(1, case.batches + 1)]
    return [_padded(rows[i * case.size : (i + 1) * case.size]) for i in range(case.batches)]


def _encoded(n: int) -> list[list[int]]:
    """Real sentences as MiniLM's tokenizer has them; where it is not installed, made-up tokens of such lengths."""
    texts = corpus.sentences(max(n, 96))
    try:
        tokenizer = corpus.load_tokenizer(corpus.model_directory(None))
    except corpus.InputError:
        return [[101, *(1000 + hash_of(word) % 20000 for word in text.split()), 102][:LONGEST] for text in texts]
    return list(tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"])


def hash_of(word: str) -> int:
    """A number for a word, the same in every process."""
    return sum(ord(c) * 31**i for i, c in enumerate(word[:8]))


def _padded(rows: Sequence[list[int]]) -> Batch:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


# --------------------------------------------------------------------------------------------- accuracy, then times


def _cosines(found: Tensor, plain: Tensor) -> dict[str, float]:
    cosines = nn.functional.cosine_similarity(found.double(), plain.double(), dim=-1)
    return {"mean_cosine": float(cosines.mean()), "least_cosine": float(cosines.min())}


def _wrong(arm: Arm, row: Mapping[str, Any]) -> str:
    if "gradient_error" in row and not row["gradient_error"] <= GRADIENT_ERROR[arm.precision]:
        return f"wrong: gradients are off by {row['gradient_error']:.1e}"
    if "least_cosine" in row and not row["least_cosine"] >= LEAST_COSINE[arm.precision]:
        return f"wrong: a cosine is {row['least_cosine']:.4f}"
    return ""


def least_times(calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, Any]:
    """name -> (wall ms, CPU ms of all threads), each the least of the rounds; at least two are made."""
    found = {name: (float("inf"), float("inf")) for name in calls}
    begun, names = time.perf_counter(), list(calls)
    gc.collect()
    gc.disable()  # a collection takes long with all that is imported here, and would be one arm's
    try:
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                wall, cpu = time.perf_counter(), time.process_time()
                calls[name]()
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                found[name] = (min(found[name][0], wall * 1e3), min(found[name][1], cpu * 1e3))
            if number >= 1 and time.perf_counter() - begun > seconds:
                break
    finally:
        gc.enable()
    return found


def measure(case: CpuCase, settings: Settings, *, compilers: bool) -> list[dict[str, Any]]:
    """A row an arm."""
    model, weights = model_of(case)
    config: Any = model.config
    batches = batches_of(case, config.vocab_size)
    masks = [batch["attention_mask"] for batch in batches]
    base = {
        **{"model": case.model + (f", {case.layers} layers" if case.layers else ""), "weights": weights},
        **{"task": case.task, "kind": case.kind, "batch": len(masks[0]), "threads": torch.get_num_threads()},
        **{"real": sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks), "cpu": describe_cpu()},
    }
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    plain: Any = None
    for arm in arms_of(model, case.task, batches[0], settings, compilers=compilers):
        row = rows[arm.name] = {**base, "arm": arm.name, "precision": arm.precision}
        if settings.late(arm.compiles):
            row["status"] = "not run: time budget"
            continue
        try:
            run, gradients = arm.make()
            if gradients is not None:
                found: Any = gradients(batches[0])
                plain = found if plain is None else plain
                row["gradient_error"] = gradient_error(found, plain)
            else:
                found = torch.cat([run(batch) for batch in batches])
                plain = found if plain is None else plain
                row |= _cosines(found, plain)
            row["status"] = _wrong(arm, row)
        except ModuleNotFoundError as problem:
            row["status"] = f"not installed: {problem.name}"
        except Exception as problem:  # one arm that fails is a row
            row["status"] = one_line(problem)
        if not row["status"]:
            calls[arm.name] = lambda run=run: [run(batch) for batch in batches]
    for call in calls.values():  # what compiles, packs or allocates does so here
        call()
    for name, (wall, cpu) in least_times(calls, settings.rounds, settings.left()).items():
        rows[name] |= {"status": "ok", "ms": wall / len(batches), "cpu_ms": cpu / len(batches)}
    time_of = "cpu_ms" if torch.get_num_threads() == 1 else "ms"
    for row in rows.values():
        if row["status"] == "ok" and rows[PLAIN]["status"] == "ok":
            row["gain"] = rows[PLAIN][time_of] / row[time_of]
    torch._dynamo.reset()
    return list(rows.values())


def describe_cpu() -> str:
    return describe(torch.device("cpu"))["cpu"]


# -------------------------------------------------------------------------------------------------------- the table


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as it is printed; accuracy is the least cosine, or the error of the gradients."""
    if row["status"] != "ok":
        return [row["arm"], "", "", "", row["status"]]
    accuracy = f"{row['least_cosine']:10.5f}" if "least_cosine" in row else f"{row['gradient_error']:10.1e}"
    gain = f"{row['gain']:6.2f}x" if "gain" in row else ""
    return [row["arm"], f"{row['ms']:9.2f}", f"{row['cpu_ms']:9.2f}", gain, accuracy]


def text_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one case as a table, ms a batch."""
    first = rows[0]
    head = f"{first['model']}, {first['task']}, {first['kind']}: batches of {first['batch']}, {first['real']:.0%} real"
    return "\n".join([head, *(f"  {line}" for line in layout.table(HEADER, [cells(row) for row in rows]))])


def run(
    out: Path,
    *,
    cases: Sequence[CpuCase],
    threads: int | None = None,
    quick: bool = False,
    rehearsal: bool = False,
    seconds: float | None = None,
    say: Callable[[str], None] = print,
    watch: Watch = unwatched,
) -> list[dict[str, Any]]:
    """Measures all cases, and writes `out` after each. Nothing new begins after `seconds`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would report the pooler that is left out; no answer uses one
    settings = Settings.of(torch.device("cpu"), 2 if rehearsal else 5 if quick else 9, rehearsal, deadline_in(seconds))
    before, rows = torch.get_num_threads(), []
    torch.set_num_threads(threads or before)
    busy = cores.busy()
    try:
        for case in watch(cases):
            new = measure(case, settings, compilers=not (quick or rehearsal))
            rows += new
            write(rows, COLUMNS, out)
            say(text_of(new))
        alone = torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    if busy > BUSY:
        means = "gains are of the processor's time" if alone else "the times mean little"
        say(f"Other work took {busy:.1f} cores: {means}. Measure again without it.")
    return rows


def main(arguments: list[str] | None = None, watch: Watch | None = None) -> int:
    parser = parser_of("cpu")
    options = parser.parse_args(arguments)
    among = REHEARSAL_CASES if options.tiny else QUICK_CASES if options.quick else CASES
    cases = [
        case
        for case in among
        if (not options.kind or case.kind in options.kind)
        and (not options.task or case.task in options.task)
        and (not options.model or case.model in options.model)
    ]
    if not cases:
        parser.error("--model, --kind and --task: no case is all of these")
    rows = run(
        options.out,
        cases=cases,
        threads=options.threads,
        quick=options.quick,
        rehearsal=options.tiny,
        seconds=bound_of(parser, options),
        watch=watch or watcher("bench cpu"),
    )
    return int(any(row["arm"].startswith("fasttx") and _failed(row) for row in rows))


def _failed(row: Mapping[str, Any]) -> bool:
    return row["status"] != "ok" and not row["status"].startswith("not ")


if __name__ == "__main__":
    sys.exit(main())
