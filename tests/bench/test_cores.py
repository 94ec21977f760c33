"""How many cores are free: what other work takes, the affinity and a container's quota are seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores of a made-up /proc and /sys, of which this process may use 0, 1 and 2."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(cores, "STAT", tmp_path / "stat")
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    return tmp_path


def works(machine: Path, monkeypatch: pytest.MonkeyPatch, busy: tuple[int, ...]) -> None:
    """While the process sleeps, each core has 100 ticks, of which so many are busy."""

    def write(passed: int) -> None:
        lines = [f"cpu{i} {n * passed} 0 0 {(100 - n) * passed} 0 0 0 0 0 0" for i, n in enumerate(busy)]
        (machine / "stat").write_text("\n".join(["cpu 9 9 9 9 9 9 9 9", *lines, "intr 1"]))

    write(0)
    monkeypatch.setattr(cores.time, "sleep", lambda _: write(1))


@pytest.mark.parametrize(
    ("busy", "free"), [((0, 0, 0, 100), 3), ((100, 0, 0, 0), 2), ((100, 100, 90, 0), 0), ((3, 4, 2, 0), 3)]
)
def test_what_others_take_is_not_free(
    busy: tuple[int, ...], free: int, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works(machine, monkeypatch, busy)
    assert cores.allowed() == 3 and cores.free() == free


@pytest.mark.parametrize(("quota", "allowed"), [("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1)])
def test_the_quota_of_a_container(quota: str, allowed: int, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "cpu.max").write_text(quota)
    works(machine, monkeypatch, (0, 0, 0, 0))
    assert cores.allowed() == cores.free() == allowed


def test_a_system_that_does_not_tell(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.2, 0.0, 0.0), raising=False)
    assert cores.free() == 2
