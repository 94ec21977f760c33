"""What the tests of models share."""

from __future__ import annotations

from collections.abc import Iterator

import model_zoo as zoo
import pytest


@pytest.fixture(autouse=True)
def _nobody_watches_the_next_test() -> Iterator[None]:
    yield
    while zoo.WATCHES:
        zoo.WATCHES.pop().remove()
