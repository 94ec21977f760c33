"""What a patched BERT of 12 layers costs the host on a GPU, in calls of Python functions and of PyTorch's operators.

Counted in a process that takes its CPU for a GPU (tests/support/pretend_gpu.py): there is no timing in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

SUPPORT = Path(__file__).parents[1] / "support"
BEFORE = {  # Python functions, operators: at 8cae9e3, counted by the same script
    "training, padded": (8619, 1475),
    "training, padding-free": (9875, 1619),
    "inference, padded": (5947, 454),
    "inference, padding-free": (7118, 507),
}
AT_MOST = {
    "training, padded": (5000, 1250),
    "training, padding-free": (5150, 1260),
    "inference, padded": (3350, 362),
    "inference, padding-free": (3450, 356),
}
"""As counted with torch 2.13 and transformers 5.17, and a little more for what others have."""
SHARE = 0.6
WAITS = ("aten.nonzero.default", "aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.item.default")


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join((str(SUPPORT.parents[1]), str(SUPPORT)))
    run = subprocess.run(
        [sys.executable, str(SUPPORT / "host_calls.py")],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("case", BEFORE)
def test_the_host_calls_little(case: str, counted: dict[str, Any]) -> None:
    found = counted[case]
    python, operators = found["python"], found["operators"]
    if torch.__version__.startswith("2.13"):
        assert python <= AT_MOST[case][0] and operators <= AT_MOST[case][1], found
    assert python <= SHARE * BEFORE[case][0], found
    assert python + operators <= SHARE * sum(BEFORE[case]), found


@pytest.mark.parametrize("case", BEFORE)
def test_every_layer_runs_on_kernels(case: str, counted: dict[str, Any]) -> None:
    """Or little would be called because transformers' own forward runs."""
    ops, training = counted[case]["ops"], case.startswith("training")
    for direction in ("fwd", "bwd") if training else ("fwd",):
        for op, n in (
            ("attention", 12),
            ("dropout_add_layer_norm", 24),
            ("bias_gelu", 12),
            ("embedding_layer_norm", 1),
        ):
            assert ops[f"fasttx.{op}_{direction}.default"] == n
    assert ops.get("fasttx.rng_state.default", 0) == training


def test_a_step_of_a_collators_batch_waits_for_nothing(counted: dict[str, Any]) -> None:
    ops = counted["training, padding-free"]["ops"]
    assert not [name for name in WAITS if name in ops]
    assert "aten.nonzero.default" in counted["training, padded"]["ops"]  # which got no label_counts


def test_no_gradient_is_filled_with_zeros_and_copied(counted: dict[str, Any]) -> None:
    """As that of x[0] is."""
    for case in BEFORE:
        assert not [name for name in counted[case]["ops"] if "select_backward" in name or "slice_backward" in name]
