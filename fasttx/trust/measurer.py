"""The process that measures for `tune`, as this process sees it: a question a line, and an answer."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..ops import tuned
from . import first_use

ITEM_S = 120.0
"""Seconds for one item, with what Triton compiles."""
START = "import sys; sys.path[:] = {path!r}; from fasttx.cli.measure import main; main()"
COMMAND: tuple[str, ...] = ()
"""For tests: a program that stands for the child."""


class Measurer:
    """The process that measures: started when it is needed, and again after it has died."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self._arguments = (str(device), "quick" if quick else "whole")
        self._key = tuned.key(device)
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def ask(self, item: str, without: Mapping[str, str], seconds: float) -> Mapping[str, Any]:
        """The last line that it says of an item; "crashed" and "how" where it died, "problem" where it cannot begin."""
        end, running = time.monotonic() + seconds, ""
        if self._process is None or self._process.poll() is not None:
            try:
                self._start()
            except OSError as problem:
                return {"problem": f"no child process: {problem}"}
        process = self._process
        assert process is not None and process.stdin is not None
        with contextlib.suppress(OSError):  # it has died; its output says so
            process.stdin.write(json.dumps({"item": item, "without": dict(without)}) + "\n")
            process.stdin.flush()
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                self.stop()
                return {"problem": "no time was left" if seconds < ITEM_S else f"it took more than {ITEM_S:.0f} s"}
            if line is None:
                code = process.wait()
                how = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
                if code in first_use.FROM_OUTSIDE:
                    return {"problem": f"the process that measures {how}"}
                return {"crashed": running, "how": how}
            told = _told(line)
            if told.get("device"):
                self.stop()
                return {"problem": f"the device could not be used: {told['device']}"}
            if told.get("key", self._key) != self._key:
                self.stop()
                return {"problem": "the process that measures has another device, driver, version or number of threads"}
            if told.get("item") == item:
                running = told.get("runs", running)
                if "found" in told or "problem" in told:
                    return told

    def _start(self) -> None:
        path = [os.fspath(folder) for folder in sys.path if isinstance(folder, (str, os.PathLike))]
        start = START.format(path=[*path, str(Path(__file__).parents[2])])
        command = COMMAND or (sys.executable, "-c", start)
        environment = {k: v for k, v in os.environ.items() if k not in ("FASTTX_BACKEND", "PYTHONWARNINGS")}
        environment |= {first_use.SWITCH: "0", tuned.SWITCH: "0"}  # it checks by itself, and goes by defaults
        how: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        how |= dict(text=True, encoding="utf-8", errors="replace", start_new_session=True)  # Ctrl-C is this process's
        process = subprocess.Popen([*command, *self._arguments], env=environment, **how)
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in process.stdout or ():
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        self._process, self._lines = process, lines

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(first_use.END_S)
            self._process = None


def _told(line: str) -> Mapping[str, Any]:
    """A line of the child; nothing, if it is another's: an import may print."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
