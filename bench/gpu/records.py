"""JSON lines that survive whoever writes them: each is one write of a whole line. The standard library alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def append(path: Path, line: Line) -> None:
    """Adds one line, whole, also where several processes write: what is killed after this has left it."""
    text = json.dumps(line, default=str) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


class Tail:
    """The lines that a file got since the last look; half a line waits for its end."""

    def __init__(self, path: Path, *, from_the_end: bool = False) -> None:
        self.path = path
        self.offset = path.stat().st_size if from_the_end and path.exists() else 0

    def new(self) -> list[Line]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self.offset += end
        return [json.loads(line) for line in text[:end].splitlines() if line.strip()]


def read(path: Path) -> list[Line]:
    """All whole lines of a file."""
    return Tail(path).new()
