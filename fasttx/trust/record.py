"""Writing the record of a device: one process at a time, and never half a file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from ..ops import verdicts
from ..ops.verdicts import Verdict

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write(device: torch.device, found: Mapping[str, Verdict]) -> bool:
    """Adds verdicts to the file of a device; what is unchecked is not kept. False: the folder cannot be written."""
    kept = {row: verdict for row, verdict in found.items() if verdict.status != "unchecked"}
    rows = {row: list(verdict) for row, verdict in sorted((verdicts.read(device) | kept).items())}
    return replace(verdicts.record_path(device), {"key": verdicts.key(device), "rows": rows})


def replace(path: Path, data: object) -> bool:
    """Writes a file of JSON, never half of it; False where its folder cannot be written."""
    text = json.dumps(data, indent=1)
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # no number of a process: another container or host may have the same folder, and a process of that number
        descriptor, draft = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".draft", dir=path.parent)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(draft, path)
    except OSError:
        if draft is not None:
            with contextlib.suppress(OSError):
                os.unlink(draft)
        return False
    return True


def remove(device: torch.device) -> None:
    """Deletes the file of a device, if there is one."""
    with contextlib.suppress(OSError):
        verdicts.record_path(device).unlink(missing_ok=True)


@contextlib.contextmanager
def lock(
    device: torch.device, wait_s: float, waiting: Callable[[], None] = lambda: None, file: Path | None = None
) -> Iterator[bool]:
    """Holds the lock of a device's record; False after `wait_s` seconds in which another process has held it.

    `waiting` is called once where another process holds it.

    The system releases it with the process, however that ends. Where the folder cannot be written or the system has no
    such lock, nobody else is kept out, and the answer is True. `file` is another one, with its own lock.
    """
    path = (file or verdicts.record_path(device)).with_suffix(".lock")
    descriptor = _open(path)
    if descriptor is None:
        yield True
        return
    try:
        yield _acquire(descriptor, wait_s, waiting)
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked meanwhile holds it, too
        os.close(descriptor)


def _open(path: Path) -> int | None:
    if fcntl is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


def _acquire(descriptor: int, wait_s: float, waiting: Callable[[], None]) -> bool:
    end, told = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            if not told:
                told = True
                waiting()
            time.sleep(0.05)
        except OSError:  # a file system without locks
            return True
