"""Where hypothesis is missing, tests of properties are skipped with that reason and the rest of their file runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FILE = """
import importlib.util
import hypothesis_absent
hypothesis_absent.install()
assert importlib.util.find_spec("hypothesis").origin is None  # torch._dynamo asks that
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

numbers = st.one_of(st.just(-1), st.integers(0, 40)) | st.none()

@st.composite
def cases(draw: st.DrawFn) -> int:
    return draw(numbers)

@pytest.mark.parametrize("side", [1, 2])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), n=st.integers().map(abs))
def test_property(case, n, side):
    raise AssertionError("ran")

def test_example():
    pass
"""


def test_properties_are_skipped_and_examples_run(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(FILE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", "-rs", "-q", "-c", "/dev/null", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert "1 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert "hypothesis is not installed" in done.stdout


def test_the_stand_in_does_not_answer_for_a_modules_own_attributes() -> None:
    """inspect walks sys.modules for __file__; torch.library does so while fasttx is imported."""
    code = "import hypothesis_absent; hypothesis_absent.install(); import fasttx, fasttx.ops.softmax.op"
    here = Path(__file__).parent
    env = {"PYTHONPATH": f"{here}:{here.parent}"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=here.parent, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
