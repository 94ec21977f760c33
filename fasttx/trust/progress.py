"""How much time a check has left, and what is shown of it."""

from __future__ import annotations

import contextlib
import sys
import time


class Clock:
    """How much time is left, in all and without what Triton compiles."""

    def __init__(self, run_s: float, all_s: float, hang_s: float) -> None:
        self.run_s, self.all_s, self.hang_s = run_s, all_s, hang_s
        self.began = self.since = time.monotonic()
        self.compiling, self.compiled_s = False, 0.0

    def phase(self, compiling: bool) -> None:
        now = time.monotonic()
        if self.compiling:
            self.compiled_s += now - self.since
        self.compiling, self.since = compiling, now

    def left(self) -> tuple[float, str]:
        """Seconds until a row is given up, and what that means for it: "hung" or "unchecked"."""
        now = time.monotonic()
        compiled = self.compiled_s + (now - self.since if self.compiling else 0.0)
        in_all = min(self.began + self.all_s - now, self.run_s - (now - self.began - compiled))
        hang = self.since + self.hang_s - now
        return (hang, "hung") if not self.compiling and hang < in_all else (in_all, "unchecked")


def say(text: str) -> None:
    """Writes to stderr, which may be closed, None, or something of the user's that only writes."""
    with contextlib.suppress(Exception):
        sys.stderr.write(text)
        sys.stderr.flush()


class Progress:
    """A line on stderr, and a bar behind it in a terminal."""

    def __init__(self, device: str, n: int, clock: Clock, switch: str) -> None:
        self.n, self.done, self.bar = n, 0, False
        with contextlib.suppress(Exception):
            self.bar = sys.stderr.isatty()
        self.text = (
            f"fasttx: checking {n} kernels on {device}, once on this machine "
            f"(at most {clock.run_s:.0f} s, {clock.all_s:.0f} s where they are compiled first; "
            f"{switch}=0 leaves it out)"
        )
        say(self.text + ("" if self.bar else "\n"))
        self._show()

    def _show(self) -> None:
        if self.bar:
            say(f"\r\x1b[Kfasttx: checking kernels [{'#' * self.done}{'.' * (self.n - self.done)}]")

    def step(self) -> None:
        self.done += 1
        self._show()

    def end(self) -> None:
        if self.bar:
            say("\n")
