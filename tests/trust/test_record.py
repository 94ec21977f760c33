"""The record of the check at first use: who reads it, what makes another one, folders and homes that are not there."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from trust import probes
from trust.test_first_use import CPU, check, machine, restart

from fasttx.ops import OPS, verdicts
from fasttx.trust import first_use, record

__all__ = ["machine"]


def test_the_next_start_reads_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="kernels failed"):
        first = check("wrong", "right")
    restart()
    monkeypatch.setattr(first_use, "COMMAND", ("no such program",))
    x = torch.ones(3)
    op = OPS[probes.name_of("wrong", "right")]
    assert op.runs("auto", x) == "triton", "functions read the record too"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check("wrong", "right") == first
    began = time.perf_counter()
    for _ in range(100):
        op.choice("auto", x)
    assert time.perf_counter() - began < 0.1, "a millisecond a call"


RIGHT = {f"{probes.name_of('right')}/cuda/float32": verdicts.Verdict("ok")}


@pytest.mark.parametrize("change", ["driver", "torch", "triton", "fasttx", "kernels", "device"])
def test_anything_that_changes_makes_another_record(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record.write(CPU, RIGHT)
    path, old = verdicts.record_path(CPU), verdicts.key(CPU)
    monkeypatch.setattr(verdicts, "key", lambda device: old | {change: "another"})
    restart()
    assert verdicts.record_path(CPU) != path and verdicts.known(CPU) == {}
    verdicts.record_path(CPU).write_text(path.read_text())  # one that was carried here
    restart()
    assert verdicts.known(CPU) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": {}}', '{"key": 1, "rows": 2}', "null"])
def test_a_file_that_is_no_record_counts_as_none(text: str) -> None:
    record.write(CPU, RIGHT)
    whole = json.loads(verdicts.record_path(CPU).read_text())
    verdicts.record_path(CPU).write_text(text)
    restart()
    assert verdicts.known(CPU) == {}
    record.write(CPU, RIGHT)
    assert json.loads(verdicts.record_path(CPU).read_text()) == whole


def test_a_folder_that_cannot_be_written(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is made once a process, and holds in it."""
    (machine / "file").write_text("")
    monkeypatch.setenv("FASTTX_CACHE", str(machine / "file" / "below"))
    restart()
    with pytest.warns(UserWarning, match="kernels failed"):
        assert check("wrong")["cuda"].status == "wrong"
    monkeypatch.setattr(first_use, "COMMAND", ("no such program",))
    assert check("wrong")["cuda"].status == "wrong"
    assert OPS[probes.name_of("wrong")].runs("auto", torch.ones(2)) == "torch"


@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
@pytest.mark.slow
def test_a_home_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, for a user without a name."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("FASTTX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    restart()
    assert check("wrong")["cuda"].status == "wrong"
    assert first_use.recheck(CPU, [(probes.name_of("right"), torch.float32)]) and verdicts.to_dict(CPU)["rows"]


def test_each_verdict_is_kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is interrupted has not been in vain."""
    run = first_use.run

    def interrupted(*arguments: Any) -> Any:
        yield next(run(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(first_use, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first_use.check(CPU, [(probes.name_of(kernel), torch.float32) for kernel in ("right", "prints")])
    restart()
    assert list(verdicts.known(CPU)) == [f"{probes.name_of('right')}/cuda/float32"]
