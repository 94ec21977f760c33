"""A stage's child as its parent sees it: started, watched by its journal, ended with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from .child import BROKEN
from .records import Tail
from .stages import Stage

MOST_RESTARTS = 20
"""Of one share of a stage: an item that dies costs a start of some seconds."""


@dataclass
class Worker:
    """One share of a stage.

    Attributes:
        lost: what a look found out: (item, why), each once.
        done: items that need not run again.
        over: whether nothing of it runs any more.
    """

    stage: Stage
    part: str
    share: tuple[int, int]
    out: Path
    scratch: Path
    until: float
    rehearse: bool
    environ: dict[str, str]
    lost: list[tuple[str, str]] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    over: bool = False
    items: list[str] = field(default_factory=list)
    _open: tuple[str, float] | None = None
    _starts: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._starts += 1
        name = f"{self.stage.name}-{self.share[0]}-{self._starts}"
        self.log = self.scratch / f"{name}.log"
        self._journal, self._open = Tail(self.scratch / f"{name}.journal"), None
        command = [sys.executable, "-m", "bench.gpu.child", self.stage.module, "--stage", self.stage.name]
        command += ["--part", self.part, "--out", str(self.out), "--journal", str(self._journal.path)]
        command += ["--until", str(self.until), "--share", f"{self.share[0]}/{self.share[1]}"]
        command += ["--rehearse"] if self.rehearse else []
        command += ["--skip", *sorted(self.done)] if self.done else []
        with self.log.open("wb") as log:
            # A session of its own, to be ended with everything that it starts.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environ,
                start_new_session=True,
            )

    def look(self) -> None:
        """Takes note of what happened since; starts another process behind an item that took its process along."""
        if self.over or self._process is None:
            return
        status = self._process.poll()  # before the journal, which is then complete
        self._read()
        now = time.time()
        if status is None and now > self.until:
            self.kill("the stage's time was up")
        elif status is None and self._open is not None and now - self._open[1] > self.stage.item_seconds:
            self._end()
            self._go_on(f"hung: nothing within {self.stage.item_seconds:.0f} s")
        elif status == BROKEN and self._open is None:
            self._go_on(None)
        elif status == 0:
            self._close()
        elif status is not None:
            self._go_on(f"crashed: {_named(status)}; {self.last_line()}")

    def kill(self, why: str) -> None:
        """Ends it now; what it had not finished is lost."""
        if self._process is not None and not self.over:
            self._end()
            self._read()
            if self._open is not None:
                self.lost.append((self._open[0], f"killed: {why}"))
                self.done.add(self._open[0])
            self._close()

    def last_line(self) -> str:
        """What a person would look at first."""
        text = self.log.read_bytes()[-20_000:].decode(errors="replace")
        return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")

    def _read(self) -> None:
        for line in self._journal.new():
            if "items" in line:
                self.items = line["items"]
            elif "begins" in line:
                self._open = line["begins"], line["at"]
            else:
                self._open = None
                self.done.add(line["ends"])

    def _end(self) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def _go_on(self, why: str | None) -> None:
        """Starts anew behind the open item, which `why` cost; without one, the whole stage is lost."""
        self._end()  # what the child had started may live on
        if why is not None:
            item = self._open[0] if self._open is not None else ""
            self.lost.append((item, why))
            if not item:
                self.over = True
                return
            self.done.add(item)
        if self._starts > MOST_RESTARTS or time.time() > self.until:
            self._close()
        else:
            self.start()

    def _close(self) -> None:
        self._end()
        self.over = True
        left = [item for item in self.items if item not in self.done]
        if left:
            self.lost.append((f"{len(left)} items", f"not run: no time was left for {', '.join(left)}"[:600]))


def _named(status: int) -> str:
    try:
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"
    except ValueError:
        return f"exit status {status}"
