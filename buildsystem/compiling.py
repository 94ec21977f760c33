"""Calls of a compiler whose outputs are kept, under a hash of all that went into them, so that nothing is made twice.

Of a source the compiler itself lists which files it read (`-MD`). That list is kept by the command, and the output by
what the listed files hold: an edit compiles the sources anew that read the edited file, and no other.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from announce import say


def run(command: Sequence[str]) -> str:
    """Runs a compiler; what it printed.

    Raises:
        RuntimeError: it failed; the message has the command and the end of its output.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-8000:]}")
    return done.stdout + done.stderr


def read_list(text: str) -> list[Path]:
    """The files that a list in make's syntax says its target is made from."""
    _, _, files = text.replace("\\\n", " ").partition(": ")
    return [Path(re.sub(r"\\(.)", r"\1", name).replace("$$", "$")) for name in re.findall(r"(?:\\.|[^\s\\])+", files)]


@functools.cache
def _contents(path: Path, changed: int, size: int) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _changed_since(began: int, path: Path) -> bool:
    """Whether the file was written, or taken away, between `began` and now; a clock ahead of this one's is no edit."""
    try:
        return began <= path.stat().st_mtime_ns <= time.time_ns()
    except FileNotFoundError:
        return True


@dataclass(frozen=True)
class Job:
    """A compiler's call, `command -o FILE`.

    Attributes:
        command: without the output.
        inputs: the files that it reads; of a source the source alone, where `lists` is given.
        name: of the output; the file on the disk has a hash of everything in it.
        key: what stands for the command in that hash; None for the command itself.
        lists: the compiler's option for a list of the files that it reads, "-MD", or "-MMD" for one without those of
            the system; empty where `inputs` has them all.
        keeps_messages: whether what the compiler prints is kept beside the output, as a file `.log`.
    """

    command: Sequence[str]
    inputs: Sequence[Path]
    name: str
    key: Sequence[str] | None = None
    lists: str = ""
    keeps_messages: bool = False

    def _digest(self, files: Sequence[Path]) -> str:
        digest = hashlib.sha256(repr(list(self.command if self.key is None else self.key)).encode())
        for path in files:
            state = path.stat()
            digest.update(_contents(path, state.st_mtime_ns, state.st_size))
        return digest.hexdigest()[:20]

    def _at(self, folder: Path, files: Sequence[Path]) -> Path:
        stem, suffix = self.name.rsplit(".", 1)
        return folder / f"{stem}-{self._digest(files)}.{suffix}"

    def list_in(self, folder: Path) -> Path:
        """Where the list of what the command read the last time is, or is to be."""
        return folder / f"{self.name}-{self._digest([])}.d"

    def found(self, folder: Path) -> Path | None:
        """Its output, if the very same thing was made before."""
        files = list(self.inputs)
        if self.lists:
            kept = self.list_in(folder)
            if not kept.is_file():
                return None
            files = read_list(kept.read_text())
        if not all(path.is_file() for path in files):
            return None
        path = self._at(folder, files)
        return path if path.is_file() else None

    def made(self, folder: Path) -> Path:
        """The output, from `folder` if the very same thing was made before.

        The file appears under its name when it is whole: another process never sees half of it. What was edited
        meanwhile is compiled once more, as nobody knows which text the compiler has read.
        """
        found = self.found(folder)
        if found is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out, listed = Path(scratch) / self.name, Path(scratch) / "list.d"
            command = [*self.command, *([self.lists, "-MF", str(listed)] if self.lists else []), "-o", str(out)]
            files, began, messages = self.inputs, 0, ""
            while began == 0 or any(_changed_since(began, path) for path in files):
                began = time.time_ns()
                messages = run(command)
                files = read_list(listed.read_text()) if self.lists else self.inputs
            path = self._at(folder, files)
            if self.keeps_messages:
                (Path(scratch) / "log").write_text(messages)
                os.replace(Path(scratch) / "log", messages_of(path))
            os.replace(out, path)
            if self.lists:
                os.replace(listed, self.list_in(folder))
        return path


def messages_of(made: Path) -> Path:
    """The file with what the compiler printed when it made that output, if its job keeps that."""
    return made.with_suffix(".log")


def made_once(command: Sequence[str], inputs: Sequence[Path], folder: Path, name: str) -> Path:
    """What `command -o FILE` makes of the inputs, from `folder` if the very same thing was made before."""
    return Job(command, inputs, name).made(folder)


def made_all(jobs: Sequence[Job], folder: Path) -> list[Path]:
    """The output of each job, MAX_JOBS at a time, with a line as each is there."""
    began = time.monotonic()
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        ahead = {pool.submit(job.made, folder): job for job in jobs}
        try:
            for done, job in enumerate(as_completed(ahead), 1):
                job.result()
                say(f"[{done}/{len(jobs)}] {ahead[job].inputs[0].name}, {time.monotonic() - began:.0f} s")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # of a build that fails nothing more begins
            raise
    return [job.result() for job in ahead]
