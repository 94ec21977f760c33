"""Ways through a loop of machine code: which instructions a warp executes when nothing out of the ordinary happens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cuda.machine_code import Instruction


def named(start: str) -> Callable[[Instruction], bool]:
    return lambda instruction: instruction.name.startswith(start)


def shortest_way(loop: Sequence[Instruction], through: Sequence[Callable[[Instruction], bool]]) -> list[Instruction]:
    """The fewest instructions from a loop's first to its last, forwards, that meet what each of `through` looks for, in
    that order."""
    at = {instruction.address: n for n, instruction in enumerate(loop)}

    def met(n: int, so_far: int) -> int:
        return so_far + (so_far < len(through) and through[so_far](loop[n]))

    start = (0, met(0, 0))
    before: dict[tuple[int, int], tuple[int, int] | None] = {start: None}
    length = {start: 1}
    for n, here in enumerate(loop[:-1]):
        for so_far in range(len(through) + 1):
            if (n, so_far) not in length:
                continue
            always = (
                here.name.startswith("BRA") and not here.text.startswith("@") and not re.search(r"\bU?P\d", here.text)
            )
            ways = [] if always else [n + 1]
            if here.target is not None and here.target > here.address and here.target in at:
                ways.append(at[here.target])
            for way in ways:
                there = (way, met(way, so_far))
                if length[n, so_far] + 1 < length.get(there, 1 << 30):
                    length[there], before[there] = length[n, so_far] + 1, (n, so_far)
    step: tuple[int, int] | None = (len(loop) - 1, len(through))
    assert step in length, "there is no such way"
    found = []
    while step is not None:
        found.append(loop[step[0]])
        step = before[step]
    return found[::-1]
