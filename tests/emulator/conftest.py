"""What the tests of kernels in the emulator share."""

from __future__ import annotations

import host_module
import pytest

from fasttx.ops import _cuda


@pytest.fixture
def race(device):
    """The kernels with hooks stand in; afterwards those that stood there before."""
    if device.type == "cuda":
        pytest.skip("on a GPU compute-sanitizer does this")
    module, emulator = host_module.load("race")
    assert emulator.has_hooks and module is not host_module.load("plain")[0]
    before = _cuda._stand_in
    _cuda.set_stand_in(module, emulator.watch)
    yield emulator
    emulator.configure()
    emulator.set_device()
    _cuda.set_stand_in(*before)
