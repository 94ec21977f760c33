"""One fault, and the tests that ought to notice it."""

from __future__ import annotations

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
