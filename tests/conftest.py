"""Shared set-up: without a GPU every Triton kernel runs in Triton's interpreter, repaired first.

FASTTX_AOT=1 leaves the interpreter out, for tests/ahead_of_time, which compile kernels and run none, in a process of
their own.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["FASTTX_FIRST_USE_CHECK"] = "0"  # nor is the record of the user's machine read
os.environ["FASTTX_CACHE"] = os.path.join(tempfile.gettempdir(), f"fasttx-tests-{os.getpid()}")

import cpu_module
import host_build
import pytest
import selection
import torch

from bench.gpu import allowed  # the package `bench` also sets what Triton's cache is kept by
from fasttx.ops.availability import able
from fasttx.ops.cpu import launch as cpu
from fasttx.ops.cuda import launch as cuda
from fasttx.testing import poisoned_outputs

HAS_GPU = torch.cuda.is_available()
AHEAD_OF_TIME = os.environ.get("FASTTX_AOT") == "1"
POISONED = {"ops", "emulator", "gpu", "test_ops.py"}
"""Where what an operator does not write is NaN."""
collect_ignore = [] if AHEAD_OF_TIME else ["ahead_of_time"]
if not HAS_GPU and not AHEAD_OF_TIME:
    os.environ["TRITON_INTERPRET"] = "1"  # must stand before the first import of triton

try:
    import triton  # noqa: F401
except ImportError:
    HAS_TRITON = False
else:
    HAS_TRITON = True

if HAS_TRITON and not HAS_GPU and not AHEAD_OF_TIME:
    from fasttx.triton_interpreter import repair

    repair()


ROOT = Path(__file__).resolve().parents[1]
EMULATOR = ROOT / "tests" / "emulator"
STAND_IN = os.environ.get("FASTTX_EMULATOR", "plain")


class EmulatorBuild(pytest.Item):
    """Stands for all tests that need the emulator where it cannot be built, and fails with the compiler's message."""

    problem = ""

    def runtest(self) -> None:
        pytest.fail(f"the emulator cannot be built\n{self.problem}", pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        return EMULATOR / "host_build.py", 0, "build of the emulator"


def skip_what_a_gpu_adds_nothing_to(items: list[pytest.Item]) -> None:
    """Tests that make CPU tensors would ask Triton for kernels there, which the interpreter alone has."""
    for item in items:
        path = item.path.relative_to(ROOT).as_posix()
        if not allowed.may_run(path, getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason=allowed.REASON))


def pytest_itemcollected(item: pytest.Item) -> None:
    selection.mark(item)


@pytest.hookimpl(trylast=True)  # when -k and -m have chosen
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what has no use beside a GPU; without one, builds the emulator for all workers, in no test's time."""
    if HAS_GPU and not AHEAD_OF_TIME:
        skip_what_a_gpu_adds_nothing_to(items)
    if HAS_GPU or AHEAD_OF_TIME or config.option.collectonly or host_build.lacks() is not None:
        return
    own = [item for item in items if EMULATOR in item.path.parents]
    need = own + [item for item in items if "device" in getattr(item, "fixturenames", ()) and item not in own]
    wanted = [(STAND_IN, host_build.KERNELS, True)] if need else []
    if own:
        slow = any(item.get_closest_marker("slow") for item in own)
        wanted += host_build.libraries(["plain", "race", *(["asan"] if slow else [])])
    shown = config.pluginmanager.getplugin("capturemanager")
    try:
        with shown.global_and_fixture_disabled() if shown is not None else contextlib.nullcontext():
            host_build.prepare(wanted)
    except RuntimeError as problem:
        failed = EmulatorBuild.from_parent(session, name="build of the emulator")
        failed.problem = str(problem)
        items[:] = [failed, *(item for item in items if item not in need)]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels are tested: the GPU if there is one, else the CPU, by Triton's interpreter and tests/emulator."""
    if HAS_GPU:
        return torch.device("cuda", 0)
    if host_build.lacks() is None:  # else the rows of `cuda` say that they need a GPU, and are skipped
        import host_module

        module, emulator = host_module.load(STAND_IN)
        cuda.set_stand_in(module, emulator.watch)
    return torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def _cpu_kernels() -> None:
    """The int8 kernels for a CPU as the sources have them now, and not as they were when fasttx was installed."""
    if not AHEAD_OF_TIME:
        cpu.set_stand_in(cpu_module.load())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1234)
    able.clear()  # the GPU of one test may be able to run what that of another is not


@pytest.fixture(autouse=True)
def _poison(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.path.relative_to(Path(__file__).parent).parts[0] not in POISONED:
        yield
        return
    with poisoned_outputs():
        yield
