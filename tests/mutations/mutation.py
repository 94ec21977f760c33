"""One fault, and the tests that ought to notice it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Mutation(NamedTuple):
    """One fault.

    Attributes:
        file: relative to the project.
        old: text that occurs once in the file; more than the line where the line alone would not.
        new: what stands there instead.
        tests: arguments of pytest; they pass without the fault.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        old, new = self.old.splitlines(), self.new.splitlines()
        changed = next((line for line in old if line not in new), old[0])
        return f"{self.file}: {changed.strip()}"

    @contextlib.contextmanager
    def made_in(self, tree: Path) -> Iterator[None]:
        """The fault is in the sources below `tree` within the block."""
        path = tree / self.file
        before = path.read_text()
        assert before.count(self.old) == 1, f"{self.name}: found {before.count(self.old)} times"
        path.write_text(before.replace(self.old, self.new))
        try:
            yield
        finally:
            path.write_text(before)
