"""The timer, the environment record and the workloads, on whatever device is there."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from bench.environment import commit, describe, rates
from bench.timer import copies_for, interleaved
from bench.workloads import WORKLOADS, select
from fasttx.ops import OPS
from fasttx.ops.cost import bytes_of


def test_bench_is_importable_both_ways() -> None:
    names = "timer environment "
    names += "workloads kernels model serving lengths arms options contenders host compiler_report accuracy"
    names += " gpu.check gpu.report"
    for name in names.split():
        assert (
            importlib.import_module(f"fasttx.bench.{name}").__doc__ == importlib.import_module(f"bench.{name}").__doc__
        )


def test_slower_call_is_slower() -> None:
    cpu = torch.device("cpu")
    seen: list[int] = []
    found = interleaved(
        {"short": seen.append, "long": lambda _: time.sleep(0.004)}, cpu, rounds=4, copies=3, batch_ms=0.05
    )
    assert list(found) == ["short", "long"]
    assert found["long"].median >= 3.9 > found["short"].median
    assert found["long"].low <= found["long"].median <= found["long"].high
    assert set(seen) == {0, 1, 2}  # cold: every slot is used
    assert found["long"].rounds == 4 and found["long"].inner == 1


def test_no_peer_follows_itself_or_always_the_same() -> None:
    """Its own data in the caches would make the first and the last of a fixed order seem faster."""
    seen: list[str] = []
    peers = {name: (lambda _, name=name: seen.append(name)) for name in "abcd"}
    interleaved(peers, torch.device("cpu"), rounds=60, batch_ms=1e-9)
    timed = seen[-240:]
    pairs = set(zip(timed, timed[1:], strict=False))
    assert sorted(timed) == sorted("abcd" * 60)
    assert len(pairs) == 12 and not any(a == b for a, b in pairs)


def test_stops_when_time_is_spent() -> None:
    found = interleaved({"a": lambda _: time.sleep(0.02)}, torch.device("cpu"), rounds=500, seconds=0.1)
    assert 3 <= found["a"].rounds < 20


def test_another_clock_leaves_out_what_is_waited_for() -> None:
    sleeps = {"a": lambda _: time.sleep(0.02)}
    found = interleaved(sleeps, torch.device("cpu"), rounds=3, clock=time.process_time)
    assert found["a"].median < 15 < interleaved(sleeps, torch.device("cpu"), rounds=3)["a"].median


def test_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="peers and rounds: got 0 peers"):
        interleaved({}, torch.device("cpu"))


def test_copies_exceed_the_cache() -> None:
    cpu = torch.device("cpu")
    x = torch.zeros(1000, dtype=torch.float32)
    assert bytes_of(x, None, 3, x) == 8000
    assert copies_for(cpu, 64 << 20) * (64 << 20) >= 2 * (128 << 20)
    assert copies_for(cpu, 1) == 64 and copies_for(cpu, 1 << 40) == 1


@pytest.mark.slow
def test_environment(device: torch.device) -> None:
    found = describe(device)
    assert found["torch"] == version("torch")  # PyPI's CUDA build says +cu130 in torch.__version__ alone
    assert found["commit"] == commit() and found["cpu"]
    assert all(rate > 0 for rate in rates(torch.device("cpu"), tiny=True).values())


def test_workload_names() -> None:
    names = [w.name for w in WORKLOADS]
    assert len(set(names)) == len(names)
    assert {w.op for w in WORKLOADS} == set(OPS)
    assert [w.name for w in select("ragged-packed")] == ["attention-bert-base-s512-ragged-packed"]
    with pytest.raises(ValueError, match="^workload: got 'no such'; allowed is a part of attention-"):
        select("no such")


def test_a_table_names_the_commit_that_was_imported() -> None:
    """A checkout may move while a benchmark runs, and what runs is what was read at its start."""
    source = "import bench.table as t; t.commit = lambda: 'moved'; print(t.identity()['commit'])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == commit() != "moved"
