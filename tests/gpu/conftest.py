"""Tests that need a GPU. FASTTX_REHEARSAL=1 runs them at tiny size in Triton's interpreter, every line of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench.captured import captured

REHEARSAL = os.environ.get("FASTTX_REHEARSAL") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not (torch.cuda.is_available() or REHEARSAL):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU (FASTTX_REHEARSAL=1 runs it at tiny size)"))


@pytest.fixture
def sized() -> Callable[[int, int], int]:
    """sized(full, tiny): the first on a GPU, the second in a rehearsal."""
    return lambda full, tiny: full if torch.cuda.is_available() else tiny


@pytest.fixture
def compile_backend() -> str:
    return "inductor" if torch.cuda.is_available() else "aot_eager"


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    """The large tests take tens of GiB; nothing of one stays for the next."""
    yield
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Graph:
    """A CUDA graph where there is a GPU; in a rehearsal `replay` calls the function again."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.call = captured(step, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def replay(self) -> None:
        self.call(0)
        if torch.cuda.is_available():
            torch.cuda.synchronize()


@pytest.fixture
def capture() -> type[Graph]:
    return Graph


@pytest.fixture
def enough_memory(device: torch.device) -> Callable[[int], None]:
    """need(nbytes): skips, naming what is missing, where the device has less free memory."""

    def need(nbytes: int) -> None:
        if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < nbytes:
            pytest.skip(f"needs {nbytes / 2**30:.0f} GiB of free GPU memory")

    return need
