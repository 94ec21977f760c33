"""The command: `python -m fasttx tune`, what it prints, and who else shows its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trust import rows
from trust.rows import LONG, NAME, OP, SHORT
from trust.test_tune import InProcess
from typer.testing import CliRunner

from bench import timer
from fasttx.cli.app import app
from fasttx.ops import OPS, tuned, verdicts
from fasttx.trust import measurer, tune

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FASTTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv(tuned.SWITCH, raising=False)
    monkeypatch.setitem(OPS, NAME, OP)
    monkeypatch.setattr(InProcess, "asked", [])
    monkeypatch.setattr(InProcess, "dies", {})
    monkeypatch.setattr(rows, "FACTOR", {"cuda": 2.0, "triton": 2.0})
    monkeypatch.setattr(rows.clock, "cost", {"cuda": 3.0, "triton": 2.0, "torch": 6.0})
    monkeypatch.setattr(rows, "LONG_COSTS", {"triton": 2.0})
    tuned.forget()
    verdicts.forget()
    yield tmp_path / "cache"
    tuned.forget()
    verdicts.forget()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child would do happens in this process."""
    monkeypatch.setattr(tune, "Measurer", InProcess)
    monkeypatch.setattr(timer, "time", rows.clock)


def call(*arguments: str) -> Any:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.mark.usefixtures("here")
def test_what_it_prints() -> None:
    done = call("tune", "--only", NAME, "--device", "cpu")
    assert done.exit_code == 0
    table = done.stdout.split(" kinds of calls measured")[0].rsplit("\n", 1)[0]
    assert all(len(line) <= 80 for line in table.splitlines())
    lines = [line.split() for line in table.splitlines()]
    assert ["short", "rows,", "any", "rows", "triton", "1.50", "x", "3.00", "x"] in lines
    assert ["long", "rows,", "any", "rows", "cuda", "default", "2.00", "x"] in lines
    assert (
        f"4 kinds of calls measured on cpu, in 2 of them auto leaves its default ({tuned.table_path(CPU)})"
        in done.stdout
    )
    told = done.stderr.splitlines()
    assert len(told) == 4 and told[0] == f"tune 1 of 4: {NAME}/float32/{SHORT}: triton, 1.50 x as fast as cuda"
    assert "cuda, as before" in told[1]
    again = call("tune", "--only", NAME, "--device", "cpu")
    assert "Everything was measured before; --anew measures it again." in again.stdout and not again.stderr


@pytest.mark.usefixtures("here")
def test_json_and_who_else_shows_it() -> None:
    done = json.loads(call("tune", "--only", NAME, "--device", "cpu", "--json").stdout)
    item = f"{NAME}/float32/{SHORT}"
    assert done["measured"][item]["takes"] == "triton" and done["measured"][item]["gain"] == pytest.approx(
        1.5, rel=0.01
    )
    assert set(done["measured_now"]) == set(done["measured"]) and done["key"] == tuned.key(CPU) and done["is_used"]
    assert not done["not_measured"] and not done["reason"] and not done["nothing_to_choose"]
    doctor = call("doctor", "--env")
    assert "short rows, any rows" in doctor.stdout and "long rows" not in doctor.stdout, "what differs"
    assert json.loads(call("doctor", "--env", "--json").stdout)["tuned"]["cpu"]["measured"] == done["measured"]
    here = json.loads(call("supported", "--device", "cpu", "--dtype", "fp32", "--json").stdout)["tuned"]
    assert here == {f"{NAME}, {SHORT}": "triton, measured on this machine: 1.50 times as fast as cuda"}
    text = call("supported", "--device", "cpu", "--dtype", "fp32").stdout
    assert f"{NAME}, {SHORT}: triton, measured" in " ".join(text.split())


@pytest.mark.usefixtures("here")
def test_what_is_wrong_is_told() -> None:
    rows.FACTOR["triton"] = 2.1
    done = call("tune", "--only", NAME, "--device", "cpu")
    for regime in (SHORT, LONG):  # it has failed its check: other regimes do not run it
        assert f"{NAME}/float32/{regime}: triton is left out: fwd is off by" in done.stdout


@pytest.mark.usefixtures("here")
def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = InProcess.ask

    def interrupted(self: InProcess, item: str, *rest: Any) -> Any:
        if LONG in item:
            raise KeyboardInterrupt
        return ask(self, item, *rest)

    monkeypatch.setattr(InProcess, "ask", interrupted)
    done = call("tune", "--only", NAME, "--device", "cpu")
    assert done.exit_code == 130 and "Run the same again to go on from there." in done.stdout
    assert f"{NAME}/float32/{SHORT}" in tuned.known(CPU)


@pytest.mark.usefixtures("here")
def test_without_time_it_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "WHOLE_S", -1.0)
    done = call("tune", "--only", NAME, "--device", "cpu")
    assert done.exit_code == 0 and "4 not measured: no time was left" in done.stdout
    assert "Nothing was measured on cpu yet" in done.stdout and not InProcess.asked


@pytest.mark.usefixtures("here")
def test_why_nothing_can_be_measured(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write_text("")  # no folder
    done = call("tune", "--only", NAME, "--device", "cpu")
    assert done.exit_code == 1 and "Nothing was measured: " in done.stdout and "cannot be written" in done.stdout
    done = call("tune", "--only", "softmaks")
    assert done.exit_code == 2 and "got 'softmaks'; allowed are" in " ".join(done.output.replace("│", " ").split())


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "FASTTX_"))}
    environment |= {"FASTTX_CACHE": str(cache), "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, "-m", "fasttx", "tune", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cache.parent)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU there is a choice")
def test_the_real_command_where_there_is_no_choice(machine: Path) -> None:
    done = run(machine, "--quick", "--only", "softmax")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "On cpu there is one way only for softmax: PyTorch's own operators run.\n"
    assert not machine.exists(), "and nothing to keep"


@pytest.mark.slow
def test_the_real_command_measures(machine: Path) -> None:
    """As much as its time allows on a machine under load; what it has not measured it says."""
    done = run(machine, "--quick", "--only", "attention:key_mask", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["measured"]) == set(found["measured_now"]) and "softmax" not in done.stdout
    assert set(found["not_measured"].values()) <= {"no time was left"}
    assert len(found["measured"]) + len(found["not_measured"]) == 8


def test_the_real_child_measures() -> None:
    child = measurer.Measurer(CPU, True)
    try:
        item = "attention:key_mask/float32/saves to 500"
        found = child.ask(item, {}, 280.0)["found"]
        assert set(found["times"]["plain"]) == {"one masked call", "a call a sequence"} and not found["left_out"]
        assert isinstance(tune._chosen(found, True), tuned.Measured)
        assert child.ask("no_such_op/float32/x", {}, 280.0)["problem"] == "KeyError: 'no_such_op'"
    finally:
        child.stop()
