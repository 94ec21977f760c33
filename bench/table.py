"""The CSV of a benchmark: its rows, and in each of them the versions and the commit that they come from."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .environment import PEERS, commit, versions

IDENTITY = ("commit", "python", "torch", "triton", "transformers", *PEERS)


@functools.cache
def identity() -> dict[str, str]:
    """What each row tells of the code: asked once a process, before anything else runs git or reads packages."""
    return {"commit": commit(), **{k: v for k, v in versions().items() if k in IDENTITY}}


def write(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    """All rows so far: a run that is cut off keeps what it had."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *IDENTITY], restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            numbers = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(numbers | identity())


identity()  # at import: a checkout may move to another commit while a benchmark runs
