"""`make gpu-check`: what a GPU is asked in a quarter of an hour, one part of two, most valuable first.

    python -m bench.gpu.check --part first --out DIR [--rehearse] [--only STAGE ...]

This process needs no torch and touches no GPU. Stages (stages.py) are children with a deadline each, which is kept by
killing what they started; their results are JSON lines in DIR, written as they come. A crash costs an item, at most a
stage. A line a result is printed, and a table of at most 40 lines at the end. With --rehearse everything runs at tiny
size in Triton's interpreter, and each line says that it is a rehearsal.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from . import prebuilt
from .records import Line, Tail, append
from .stages import LOG, PARTS, SECONDS, Stage
from .worker import Worker

ROOT = Path(__file__).resolve().parents[2]
TABLE_LINES = 40
REHEARSED_WORKERS = 2


class Log:
    """Prints, and adds to run.log."""

    def __init__(self, path: Path) -> None:
        self.path, self.begun = path, time.time()

    def __call__(self, text: str) -> None:
        line = f"[{time.time() - self.begun:5.1f} s] {text}"
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def say_line(line: Line) -> str:
    """One result, as it is printed: what it belongs to, what came of it, and what was expected."""
    text = f"{line['stage']} {line['item']}: {'' if line['ok'] else 'BAD '}{line.get('text', 'done')}"
    return f"{text} (expected: {line['expected']})" if line.get("expected") else text


class Check:
    """One part.

    Args:
        part: its name, on each line.
        out: the folder of results.
        seconds: after which everything is killed.
        rehearse: on a CPU, at tiny size.
        say: prints a line.
    """

    def __init__(self, part: str, out: Path, seconds: float, rehearse: bool, say: Callable[[str], None]) -> None:
        self.part, self.out, self.rehearse, self.say = part, out, rehearse, say
        self.until = time.time() + seconds
        out.mkdir(parents=True, exist_ok=True)
        self.lines: list[Line] = []
        self.environ = os.environ | prebuilt.environment(rehearse)
        here = [str(ROOT), os.environ.get("PYTHONPATH")]
        self.environ["PYTHONPATH"] = os.pathsep.join(filter(None, here))

    def run(self, stages: Sequence[Stage]) -> list[Line]:
        """All stages in order, those `beside` together with the next one."""
        scratch = Path(tempfile.mkdtemp(prefix="fasttx-gpu-check-"))
        group: list[Stage] = []
        try:
            for stage in stages:
                group.append(stage)
                if not stage.beside:
                    self._together(group, scratch)
                    group = []
            if group:
                self._together(group, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self.lines

    def _together(self, group: Sequence[Stage], scratch: Path) -> None:
        begun, workers = time.time(), list[Worker]()
        tails = {stage.file: Tail(self.out / stage.file, from_the_end=True) for stage in group}
        if self.rehearse:  # one core may do what a GPU and sixteen cores do: the part's deadline is the only one
            group = [
                replace(stage, seconds=stage.seconds * 10, item_seconds=stage.item_seconds * 10) for stage in group
            ]
        for stage in group:
            if begun > self.until:
                self._add(self._note(stage, "", "not run: the part's time was up"))
                continue
            until = min(self.until, begun + stage.seconds)
            n = min(stage.workers, REHEARSED_WORKERS) if self.rehearse else stage.workers
            n = max(1, min(n, os.cpu_count() or 1))
            for i in range(n):
                out = self.out / stage.file
                worker = Worker(stage, self.part, (i, n), out, scratch, until, self.rehearse, dict(self.environ))
                workers.append(worker)
                worker.start()
        try:
            while True:
                over = all(worker.over for worker in workers)
                for tail in tails.values():
                    for line in tail.new():
                        self._add(line, written=True)
                for worker in workers:
                    worker.look()
                    self._tell_losses(worker)
                if over:
                    return
                time.sleep(0.05)
        finally:
            for worker in workers:
                worker.kill("the check was interrupted")
                self._tell_losses(worker)

    def _tell_losses(self, worker: Worker) -> None:
        while worker.lost:
            self._add(self._note(worker.stage, *worker.lost.pop(0)))

    def _note(self, stage: Stage, item: str, why: str) -> Line:
        line = {"stage": stage.name, "part": self.part, "item": item, "ok": False, "text": why, "lost": True}
        if self.rehearse:
            line["rehearsal"] = True
        append(self.out / stage.file, line)
        return line

    def _add(self, line: Line, written: bool = False) -> None:
        if written and line.get("lost"):
            return  # this process wrote it, and has shown it
        self.lines.append(line)
        self.say(say_line(line))


def table(lines: Sequence[Line], stages: Sequence[Stage]) -> list[str]:
    """At most TABLE_LINES lines: a count a stage, what is wrong, and the figures that matter with their predictions."""
    found = []
    for stage in stages:
        own = [line for line in lines if line["stage"] == stage.name]
        bad = sum(not line["ok"] for line in own)
        found.append(f"{stage.name}: {len(own) - bad} good, {bad} bad" if own else f"{stage.name}: no result")
    wrong = [say_line(line)[:200] for line in lines if not line["ok"]]
    figures = [say_line(line)[:200] for line in lines if line["ok"] and line.get("key")]
    rows = wrong + figures
    room = TABLE_LINES - len(found)
    if len(rows) > room:
        rows = [*rows[: room - 1], f"and {len(rows) - room + 1} more, in the files"]
    return found + rows


def has_gpu() -> bool:
    """By the driver, without torch."""
    sys.path.insert(0, str(ROOT / "buildsystem"))
    import cuda_build

    return bool(cuda_build.devices())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=(*PARTS, "both"), default="both")
    parser.add_argument("--out", type=Path, default=Path("gpu-check-out"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each part")
    parser.add_argument("--only", nargs="*", default=[], help="stages by name")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at tiny size: no figures")
    options = parser.parse_args(arguments)
    known = {stage.name for stages in PARTS.values() for stage in stages}
    if not set(options.only) <= known:
        parser.error(f"--only: got {' '.join(options.only)}; allowed are {', '.join(sorted(known))}")
    if not options.rehearse and not has_gpu():
        print(
            "gpu-check: the driver shows no NVIDIA GPU (compute capability 8.0 or more) on this machine, and there is "
            "nothing to check without one (REHEARSE=1 runs every step at tiny size)",
            file=sys.stderr,
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    bad = 0
    for part in PARTS if options.part == "both" else (options.part,):
        say = Log(options.out / LOG)
        say(f"part {part}, {options.seconds:.0f} s at most" + (", a REHEARSAL: no figures" if options.rehearse else ""))
        for text in prebuilt.unpack(options.rehearse):
            say(text)
        stages = [stage for stage in PARTS[part] if not options.only or stage.name in options.only]
        # what follows comes out of the same deadline
        lines = Check(part, options.out, options.seconds - (time.time() - say.begun), options.rehearse, say).run(stages)
        say("\n".join([f"part {part}, in short:", *table(lines, stages)]))
        bad += sum(not line["ok"] for line in lines)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
