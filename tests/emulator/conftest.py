"""What the tests of kernels in the emulator share."""

from __future__ import annotations

from collections.abc import Iterator

import host_module
import pytest

from fasttx.ops.cuda import launch as cuda


def stand_in(variant: str) -> Iterator[host_module.Emulator]:
    """The kernels of one variant stand in; afterwards those that stood there before."""
    module, emulator = host_module.load(variant)
    before = cuda._stand_in
    cuda.set_stand_in(module, emulator.watch)
    yield emulator
    emulator.configure()
    emulator.set_device()
    cuda.set_stand_in(*before)


@pytest.fixture
def race(device):
    """The kernels with hooks, and the switches of their emulator."""
    if device.type == "cuda":
        pytest.skip("on a GPU compute-sanitizer does this")
    assert host_module.load("race")[1].has_hooks and host_module.load("race")[0] is not host_module.load("plain")[0]
    yield from stand_in("race")


@pytest.fixture
def plain(device):
    """The kernels as they stand in for a GPU, and the switches of their emulator."""
    if device.type == "cuda":
        pytest.skip("a GPU has one arch")
    yield from stand_in("plain")
