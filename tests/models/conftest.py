"""What the tests of models share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from models import model_zoo as zoo

from fasttx.models.fusions import fusion
from fasttx.models.padding import decision as padding_free


@pytest.fixture(autouse=True)
def _as_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models never save enough on a CPU; a test of that rule sets it again. So with other parts."""
    monkeypatch.setattr(padding_free, "WORTH_IT_ON_CPU", 0)
    monkeypatch.setattr(fusion, "UNFUSED_ON", frozenset())


@pytest.fixture(autouse=True)
def _nobody_watches_the_next_test() -> Iterator[None]:
    yield
    while zoo.WATCHES:
        zoo.WATCHES.pop().remove()
