"""Tables as benchmarks write them, with made-up figures of a GPU."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

H200 = "NVIDIA H200"


def kernel(workload: str, direction: str, peer: str, ms: float, **more: Any) -> dict[str, Any]:
    base = {
        "workload": workload,
        "direction": direction,
        "peer": peer,
        "device": H200,
        "inputs": "cold",
        "status": "ok",
    }
    figures = {"median_ms": ms, "low_ms": ms, "tflops": 100 / ms, "ratio": 1.0, "error": 1e-3, "allowed": 2e-3}
    return {**base, **figures, "commit": "0123456789ab"} | more


def step(arm: str, ms: float, **more: Any) -> dict[str, Any]:
    base = {
        "comparison": 0,
        "task": "training",
        "model": "bert-large",
        "lengths": "wikipedia",
        "batch": 32,
        "seqlen": 512,
    }
    figures = {"median_ms": ms, "low_ms": ms, "tokens_per_s": 1e6 / ms, "sequences_per_s": 32e3 / ms, "ratio": ms}
    return {**base, **figures, "real": 0.5, "device": H200, "arm": arm, "status": "ok", "peak_MiB": 1e3 * ms} | more


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path
