"""Which tests run on a machine with a GPU: the one list, which tests/conftest.py and the stage `tests` read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

ON_A_GPU = (
    "tests/gpu",
    "tests/ops",
    "tests/functional",
    "tests/nn",
    "tests/test_ops.py",
    "tests/bench/test_timer.py",
)
"""Files and folders whose tests put their tensors on the GPU by the fixture `device`."""

BESIDE_THE_OPS = ("tests/gpu/test_graphs.py", "tests/gpu/test_models.py", "tests/gpu/test_instructions.py")
"""What `make gpu-check` has the time to run, by value."""

REASON = (
    "its tensors are on the CPU, where no kernel runs on a machine with a GPU; CUDA_VISIBLE_DEVICES= lets Triton's "
    "interpreter run it"
)


def may_run(path: str, fixtures: Collection[str]) -> bool:
    """Whether a test is of use beside a GPU: on the list, and on the device. Paths are relative to the repository."""
    file = PurePosixPath(path)
    listed = any(file == PurePosixPath(place) or PurePosixPath(place) in file.parents for place in ON_A_GPU)
    return listed and ("device" in fixtures or path.startswith("tests/gpu/"))
