"""The check at first use: kernels that a patch would run for the first time on a machine are run in a child and judged.

A row is an op in one dtype on one backend. Its forward and backward run on the small call that `doctor` runs, with NaN
in what they have to write, and are compared with float64. A wrong result, a crash or a hang takes the row out of
"auto" on this machine, and the next backend of the op is checked in its place. A row that got no verdict (no time left,
no memory, a device that another process holds for itself) is used as before, and is tried again at the next start.

All of it happens in another process, which this one only reads lines from: its random state, memory and CUDA context
stay as they are.
"""

from __future__ import annotations

import collections
import contextlib
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ..ops import OPS, verdicts
from ..ops.cases import like
from ..ops.registry import Impl
from ..ops.verdicts import Row, Verdict
from .progress import Clock, Progress, say
from .record import lock, remove, write

SWITCH = "FASTTX_FIRST_USE_CHECK"
"""The environment variable that switches the check off with "0"."""
START = "import sys; sys.path[:] = {path!r}; from fasttx.cli.check import main; main()"
"""What the child runs. It looks for modules where this process does: -m would look into the working directory first."""
COMMAND: tuple[str, ...] = ()
"""For tests: a program that stands for the child."""
RUN_S, HANG_S, ALL_S = 60.0, 30.0, 180.0
"""Seconds for all rows, less what Triton compiles; for one row to go on; for all, with what Triton compiles."""
RECHECK_S = 1800.0
"""Seconds in which all kernels that there are can be checked anew."""
WAIT_S = 180.0
"""Seconds to wait for another process that checks the same kind of device."""
END_S = 5.0
"""Seconds to wait for a child that was killed: a driver in trouble may not let it go."""
KEPT_LINES, KEPT_CHARACTERS = 40, 2000
"""Of what a child writes on stderr, for `doctor --json`."""
FROM_OUTSIDE = {-getattr(signal, name, 0) for name in ("SIGHUP", "SIGINT", "SIGKILL", "SIGTERM")} - {0}
"""Codes of a process that somebody else ended, as the system does where memory is short."""
REPORT = "please report it with what `python -m fasttx doctor --json` prints"

_PROCESS = os.getpid()
_tried: set[tuple[Path, str]] = set()


def being_recorded(device: torch.device) -> str | None:
    """What is being made on a device at this moment that nothing may interrupt, or None."""
    if torch.compiler.is_compiling():
        return "a graph is being compiled"
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return None


def why_not_now(device: torch.device) -> str | None:
    """Why no check can be made at this moment, or None."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    if os.getpid() != _PROCESS or multiprocessing.current_process().daemon:
        return "this process was forked"
    reason = being_recorded(device)
    if reason is not None:
        return reason
    if not sys.executable or getattr(sys, "frozen", False):  # a frozen program would start itself
        return "no program of Python is known"
    return None


def candidates(op: str, device: torch.device, dtype: torch.dtype, width: int | None = None) -> list[Row]:
    """The rows of an op that "auto" could take on a device, in its order; those that cannot run there are none.

    Those of `cpu` are not among them: what was built for this CPU is machine code that no driver or compiler changes.
    """
    examples = like(OPS[op], device, dtype, width)

    def runs(impl: Impl) -> bool:
        return impl.backend != "cpu" and device.type in impl.auto_on and impl.why_not(*examples) is None

    return [Row(op, impl.backend, dtype) for impl in OPS[op].impls if runs(impl)]


def _next_rows(choices: Iterable[Sequence[Row]], known: dict[str, Verdict]) -> list[Row]:
    """Of each op the first row that has not failed, unless it is known to be right."""
    found = []
    for rows in choices:
        row = next((row for row in rows if str(row) not in known or not known[str(row)].failed), None)
        if row is not None and str(row) not in known and row not in found:
            found.append(row)
    return found


def check(device: torch.device, wanted: Iterable[tuple[str, torch.dtype]]) -> dict[str, Verdict]:
    """Sees to it that the ops of a patched model are checked on a device, and says what is known of them.

    Args:
        device: where the model is.
        wanted: ops and the dtypes in which the model calls them.

    Returns:
        The verdicts of the rows that "auto" would take or has given up, by "op/backend/dtype".
    """
    choices = [rows for op, dtype in wanted if (rows := candidates(op, device, dtype))]
    if not choices:
        return {}
    known = verdicts.known(device)
    if _untried(device, _next_rows(choices, known)):
        reason = why_not_now(device)
        if reason is None:
            _make(device, choices, Clock(RUN_S, ALL_S, HANG_S))
        else:
            rows = _next_rows(choices, known)
            verdicts.add(device, {str(row): Verdict("unchecked", reason) for row in rows})
    names = [str(row) for rows in choices for row in rows]
    return {name: verdict for name, verdict in verdicts.known(device).items() if name in names}


def recheck(device: torch.device, wanted: Iterable[tuple[str, torch.dtype]]) -> dict[str, Verdict]:
    """Forgets the record of a device and checks every row of these ops anew; arguments as of :func:`check`."""
    choices = [[row] for op, dtype in wanted for row in candidates(op, device, dtype)]
    remove(device)
    verdicts.forget()
    _tried.clear()
    if choices:
        _make(device, choices, Clock(RECHECK_S, RECHECK_S, HANG_S))
    return dict(verdicts.known(device))


def _untried(device: torch.device, rows: Iterable[Row]) -> list[Row]:
    kind = verdicts.record_path(device)
    return [row for row in rows if (kind, str(row)) not in _tried]


def _make(device: torch.device, choices: Sequence[Sequence[Row]], clock: Clock) -> None:
    """Checks what has no verdict yet, as the one process that does, and keeps what was found."""
    clock.phase(compiling=True)  # waiting counts as that: in all, and not as time in which kernels run
    kind = verdicts.record_path(device)
    told = f"fasttx: another process checks the kernels; waiting for it, {WAIT_S:.0f} s at most\n"
    with lock(device, WAIT_S, lambda: say(told)) as alone:
        verdicts.add(device, verdicts.read(device))  # another process may have checked them meanwhile
        known = verdicts.known(device)
        while rows := _untried(device, _next_rows(choices, known)):
            _tried.update((kind, str(row)) for row in rows)
            if not alone:
                found = {str(row): Verdict("unchecked", "another process was checking") for row in rows}
            else:
                found = {}
                for name, verdict in run(device, rows, clock):
                    found[name] = verdict
                    write(device, {name: verdict})  # at once: this process may be stopped before the last
            verdicts.add(device, found)
            _warn(device, found)


def _warn(device: torch.device, found: dict[str, Verdict]) -> None:
    failed = [f"{name} {v.detail}" for name, v in found.items() if v.failed]
    if failed:
        warnings.warn(
            f"fasttx: kernels failed their check on this machine ({device}) and are left out: {'; '.join(failed)}; "
            f"{REPORT}",
            stacklevel=_users_level(),
        )


def _users_level() -> int:
    """The stacklevel of a warning of the caller's that names the first line outside of the package."""
    package, level = str(Path(__file__).parents[1]) + os.sep, 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level + 1


def run(device: torch.device, rows: Sequence[Row], clock: Clock) -> Iterator[tuple[str, Verdict]]:
    """The verdict of each row, from as many children as it takes: one ends with the first row that is not ok."""
    left = [str(row) for row in rows]
    progress = Progress(verdicts.key(device)["device"], len(left), clock, SWITCH)
    try:
        while left:
            ended = None
            for name, verdict in _one_child(device, tuple(left), clock):
                if name == "":  # no row's
                    ended = verdict
                    break
                left.remove(name)
                progress.step()
                yield name, verdict
            if ended is None and clock.left()[0] <= 0.0:
                ended = Verdict("unchecked", f"{clock.run_s:.0f} s were not enough")
            if ended is not None:
                yield from ((name, ended) for name in left)
                break
    finally:
        progress.end()


def _environment() -> dict[str, str]:
    """The child's: no backend is forced there, a warning is no error, and nothing that it starts makes a check."""
    found = {name: value for name, value in os.environ.items() if name not in ("FASTTX_BACKEND", "PYTHONWARNINGS")}
    return found | {SWITCH: "0"}


def _command() -> tuple[str, ...]:
    path = [os.fspath(folder) for folder in sys.path if isinstance(folder, (str, os.PathLike))]
    return COMMAND or (sys.executable, "-c", START.format(path=[*path, str(Path(__file__).parents[2])]))


def _told(line: str, names: Sequence[str]) -> Mapping[str, Any]:
    """What a line of the child says of these rows; nothing, if it is another's: an import may print."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("row", names[0]) in names else {}


def _one_child(device: torch.device, names: Sequence[str], clock: Clock) -> Iterator[tuple[str, Verdict]]:
    """Verdicts of rows until the first that is not ok; ("", verdict) where none can be had."""
    how: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    how |= dict(text=True, encoding="utf-8", errors="replace", start_new_session=True)  # Ctrl-C is this process's
    try:
        child = subprocess.Popen([*_command(), str(device), *names], env=_environment(), **how)
    except OSError as problem:
        yield "", Verdict("unchecked", f"no child process: {problem}")
        return
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in child.stdout or ():
            lines.put(line)
        lines.put(None)

    complaints: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    reader = threading.Thread(target=read, daemon=True)
    listener = threading.Thread(target=lambda: complaints.extend(child.stderr or ()), daemon=True)
    reader.start()
    listener.start()

    def output(ends: bool) -> str:
        """What it has complained of; all of it, where it ends by itself."""
        listener.join(END_S if ends else 0.0)
        return "".join(complaints)[-KEPT_CHARACTERS:]

    current = ""
    clock.phase(compiling=True)  # imports are no fault of a kernel's either
    try:
        while True:
            limit, means = clock.left()
            try:
                line = lines.get(timeout=max(limit, 0.0))
            except queue.Empty:
                why = f"ran for more than {HANG_S:.0f} s" if means == "hung" else f"{clock.run_s:.0f} s were not enough"
                yield (current if means == "hung" else ""), Verdict(means, why, output(False))
                return
            if line is None:
                yield _death(current, child.wait(), output(True))
                return
            told = _told(line, names)
            if told.get("device"):
                yield "", Verdict("unchecked", f"the device could not be used: {told['device']}")
                return
            if told.get("key", verdicts.key(device)) != verdicts.key(device):
                yield "", Verdict("unchecked", "the process that checks has another device, driver or version")
                return
            if "phase" in told:
                clock.phase(told["phase"] == "compiling")
            elif "status" in told:
                current = ""
                clock.phase(compiling=True)
                verdict = Verdict(told["status"], told["detail"])
                yield told["row"], verdict if verdict.status == "ok" else verdict._replace(output=output(True))
                if told["status"] != "ok" or told["row"] == names[-1]:
                    return
            elif "row" in told:
                current = told["row"]
                clock.phase(compiling=False)
    finally:
        clock.phase(compiling=False)
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_S)
        reader.join(END_S)
        listener.join(END_S)
        for pipe, thread in ((child.stdin, reader), (child.stdout, reader), (child.stderr, listener)):
            if pipe is not None and not thread.is_alive():
                pipe.close()


def _death(row: str, code: int, output: str) -> tuple[str, Verdict]:
    """A child that has ended: within a row that is the row's fault, unless somebody else ended it."""
    how = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
    if row and code not in FROM_OUTSIDE:
        return row, Verdict("crashed", f"the process that ran it {how}", output)
    return "", Verdict("unchecked", f"the process that checks {how}", output)
