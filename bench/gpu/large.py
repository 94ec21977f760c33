"""BERT-large on Wikipedia's lengths (D1, D2): fasttx with lengths known beside sdpa, and compiled if time is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from ..arms import Arm
from ..model_cases import TRAINING, ModelCase
from .item import Context, Item, Line
from .step import BY_NAME, compared

CASE = ModelCase("bert-large", 32, 512, "wikipedia", (TRAINING,), "D1 D2")
ARMS = [BY_NAME["fasttx"], BY_NAME["sdpa"], BY_NAME["fasttx, lengths known"]]
COMPILED = [BY_NAME["fasttx"], BY_NAME["sdpa"], BY_NAME["sdpa + torch.compile"]]
COMPILE_SECONDS = 70.0
EXPECTED = "2.0 to 2.4 x fasttx's; fasttx 550 to 700 sequences/s, below D1's 997"


def only_in_time(arms: list[Arm], context: Context) -> Iterator[Line]:
    """Compilation takes most of a minute, and what comes after it would be lost."""
    if context.dry:
        return
    if context.left() < COMPILE_SECONDS and not context.rehearsal:
        yield {"text": f"not run: {context.left():.0f} s were left", "at": time.time()}
        return
    yield from compared(CASE, TRAINING, arms, "1.6 to 1.9 x fasttx's", 5, context)


def items(context: Context) -> list[Item]:
    return [
        Item("training", partial(compared, CASE, TRAINING, ARMS, EXPECTED, 5)),
        Item("compiled", partial(only_in_time, COMPILED)),
    ]
