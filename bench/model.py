"""BERT-base, one training step and one inference: transformers eager, sdpa, sdpa + torch.compile, and fasttx.

    python -m bench.model [--out FILE] [--batch 32] [--seqlen 512]

Random weights of BERT-base's shape, bf16 on a GPU, dropout 0.1 in training as shipped.  Lengths are like packs of
Wikipedia text (mean about half of seqlen), and without padding besides.  Only real tokens count in tokens/s.
"""

from __future__ import annotations

import argparse
import copy
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fasttx
from fasttx.testing import bound, error

from .timer import Call, interleaved

Batch = dict[str, Tensor]
Arms = dict[str, nn.Module]

COLUMNS = (
    "task", "batch", "device", "dtype", "arm", "status", "median_ms", "low_ms", "high_ms", "tokens_per_s", "ratio",
    "logits_error", "allowed",
)  # fmt: skip


def make_batch(batch: int, seqlen: int, vocab: int, ragged: bool, device: torch.device, seed: int = 0) -> Batch:
    """Random tokens; ragged lengths spread evenly from 1/batch to all of seqlen; labels on 15 % of the real tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocab, (batch, seqlen), generator=generator)
    lengths = torch.linspace(max(2, seqlen // batch), seqlen, batch).long()[torch.randperm(batch, generator=generator)]
    if not ragged:
        lengths = torch.full((batch,), seqlen)
    mask = torch.arange(seqlen) < lengths[:, None]
    chosen = (torch.rand(batch, seqlen, generator=generator) < 0.15) & mask
    chosen[:, 0] = True
    found = {
        "input_ids": ids * mask,
        "attention_mask": mask.long(),
        "labels": torch.where(chosen, ids, torch.full_like(ids, -100)),
    }
    return {name: tensor.to(device) for name, tensor in found.items()}


def make_model(config: Any, implementation: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config._attn_implementation = implementation
    return BertForMaskedLM(config).to(device, dtype)


def arms_of(config: Any, device: torch.device, dtype: torch.dtype, compile_backend: str) -> Arms:
    """The peers, all from the same seed and so with the same weights; compilation happens at the first call."""
    plain = make_model(config, "sdpa", device, dtype)
    compiled = make_model(config, "sdpa", device, dtype)
    compiled.compile(dynamic=False, backend=compile_backend)
    patched = make_model(config, "sdpa", device, dtype)
    fasttx.patch(patched)
    eager = make_model(config, "eager", device, dtype)
    return {"fasttx": patched, "sdpa": plain, "sdpa + torch.compile": compiled, "eager": eager}


def logits_errors(arms: Arms, config: Any, batch: Batch, device: torch.device) -> tuple[dict[str, float], float]:
    """Largest error of the logits of real tokens against float32, by arm, and what is allowed: twice sdpa's own."""
    small = {name: tensor[:2] for name, tensor in batch.items() if name != "labels"}
    real = small["attention_mask"].bool()
    exact = make_model(config, "eager", device, torch.float32).eval()
    with torch.inference_mode():
        reference = exact(**small).logits[real]
        found = {name: model.eval()(**small).logits[real] for name, model in arms.items() if "compile" not in name}
    allowed = bound(found["sdpa"], reference, found["sdpa"].dtype)
    return {name: error(logits, reference) for name, logits in found.items()}, allowed


def training_call(model: nn.Module, batch: Batch) -> Call:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(_: int) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference_call(model: nn.Module, batch: Batch) -> Call:
    model.eval()
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}

    def step(_: int) -> None:
        with torch.no_grad():
            model(**inputs)

    return step


def _timed(
    task: str, arms: Arms, batch: Batch, device: torch.device, rounds: int, base: dict[str, Any], deadline: float | None
) -> list[dict[str, Any]]:
    calls, rows = {}, []
    make = training_call if task == "training" else inference_call
    for name, model in arms.items():
        if deadline is not None and time.monotonic() > deadline:
            rows.append({**base, "task": task, "arm": name, "status": "not run: time budget"})
            continue
        try:
            call = make(model, batch)
            call(0)  # compiles here, where a failure is this arm's alone
            calls[name] = call
        except Exception as problem:  # one arm that fails is a row; the others are still compared
            text = (str(problem).strip().splitlines() or [""])[0][:160]
            rows.append({**base, "task": task, "arm": name, "status": f"{type(problem).__name__}: {text}"})
    tokens = int(batch["attention_mask"].sum())
    for name, t in (interleaved(calls, device, rounds=rounds, batch_ms=1.0) if calls else {}).items():
        rows.append({
            **base, "task": task, "arm": name, "status": "ok", "median_ms": t.median, "low_ms": t.low,
            "high_ms": t.high, "tokens_per_s": tokens / t.median * 1e3,
        })  # fmt: skip
    ours = next((row["median_ms"] for row in rows if row["arm"] == "fasttx" and row["status"] == "ok"), None)
    for row in rows:
        if ours is not None and "median_ms" in row:
            row["ratio"] = row["median_ms"] / ours
    return rows


def run(
    device: torch.device, out: Path, *, batch_size: int = 32, seqlen: int = 512, rehearsal: bool = False,
    deadline: float | None = None, say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:  # fmt: skip
    """Compares all arms in training and inference, ragged and full; writes `out` after each comparison."""
    from transformers import BertConfig

    tiny = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    config = BertConfig(**(tiny if rehearsal else {}))
    if rehearsal:
        batch_size, seqlen = 2, 12
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    where = "rehearsal" if rehearsal else torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    rows: list[dict[str, Any]] = []
    for ragged in (True, False):
        batch = make_batch(batch_size, seqlen, config.vocab_size, ragged, device)
        share = float(batch["attention_mask"].float().mean())
        base = {
            "batch": f"{batch_size}x{seqlen}, {share:.0%} real",
            "device": where,
            "dtype": str(dtype).removeprefix("torch."),
        }
        arms = arms_of(config, device, dtype, "aot_eager" if rehearsal else "inductor")
        errors, allowed = logits_errors(arms, config, batch, device)
        if not errors["fasttx"] <= allowed:
            rows.append({**base, "task": "logits", "arm": "fasttx", "status": "wrong", "logits_error": errors["fasttx"],
                         "allowed": allowed})  # fmt: skip
            say(f"model {base['batch']}: wrong logits, {errors['fasttx']:.2e} > {allowed:.2e}: not timed")
        else:
            for task in ("inference", "training"):
                new = _timed(task, arms, batch, device, 2 if rehearsal else 9, base, deadline)
                for row in new:
                    row |= {"logits_error": errors.get(row["arm"], ""), "allowed": allowed}
                rows += new
                say(f"model {task} {base['batch']}: " + "; ".join(_line(row) for row in new))
        _write(rows, out)
        torch._dynamo.reset()
    return rows


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['arm']} {row['median_ms']:.1f} ms ({row['ratio']:.2f}x)"
        if "ratio" in row
        else f"{row['arm']}: {row['status']}"
    )


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("model.csv"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--tiny", action="store_true", help="a one-layer model, for a rehearsal")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = run(device, options.out, batch_size=options.batch, seqlen=options.seqlen, rehearsal=options.tiny)
    return int(any(row["arm"] == "fasttx" and row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
