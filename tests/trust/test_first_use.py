"""The check at first use, by kernels for the CPU that are wrong, crash, hang, print and break what comes after them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from trust import probes

from fasttx.ops import OPS, verdicts
from fasttx.ops.decisions import recorded
from fasttx.trust import first_use, record

CPU = torch.device("cpu")
CHILD = (sys.executable, str(Path(probes.__file__).with_name("child.py")))


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine on which nothing was checked yet, whose children know the probes."""
    monkeypatch.setenv("FASTTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(first_use.SWITCH, raising=False)
    for name, op in probes.PROBES.items():
        monkeypatch.setitem(OPS, name, op)
    monkeypatch.setattr(first_use, "COMMAND", CHILD)
    monkeypatch.setattr(first_use, "_tried", set())
    monkeypatch.setattr(first_use, "_PROCESS", os.getpid())
    verdicts.forget()
    yield tmp_path
    verdicts.forget()


def check(*kernels: str, dtype: torch.dtype = torch.float32) -> dict[str, verdicts.Verdict]:
    """Checks the op whose row these kernels are, and gives its verdicts by backend."""
    found = first_use.check(CPU, [(probes.name_of(*kernels), dtype)])
    return {name.split("/")[1]: verdict for name, verdict in found.items()}


def restart() -> None:
    """What this process has learned is forgotten, as at the next start."""
    verdicts.forget()
    first_use._tried.clear()


@pytest.mark.parametrize(
    "kernel, status, detail",
    [
        pytest.param("right", "ok", "", marks=pytest.mark.slow),
        ("prints", "ok", ""),
        ("wrong", "wrong", "fwd is off by"),
        pytest.param("unwritten", "wrong", "fwd is off by inf", marks=pytest.mark.slow),
        ("crashes", "crashed", "ended by signal 11"),
        pytest.param("raises", "crashed", "fwd raised ValueError: no such instruction", marks=pytest.mark.slow),
        pytest.param("poisons", "crashed", "illegal memory access", marks=pytest.mark.slow),
        ("exhausts", "unchecked", "out of memory: OutOfMemoryError: tried to allocate 2 GiB"),
        pytest.param(
            "exhausts_driver",
            "unchecked",
            "out of memory: RuntimeError: Triton Error [CUDA]: out of memory",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "lacks_disk",
            "unchecked",
            "could not be compiled here: OSError: [Errno 28] No space left",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "lacks_compiler",
            "unchecked",
            "could not be compiled here: RuntimeError: Failed to find C compiler",
            marks=pytest.mark.slow,
        ),
        pytest.param("killed", "unchecked", "the process that checks ended by signal 9", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
def test_what_becomes_of_a_kernel(kernel: str, status: str, detail: str) -> None:
    """A wrong result and a crash take a row out; the one behind it is checked and taken, at last PyTorch's own."""
    name, behind = probes.name_of(kernel), probes.name_of(kernel, "right")
    op, x = OPS[name], torch.ones(3, 5)
    verdict = first_use.check(CPU, [(name, torch.float32), (behind, torch.float32)])
    found = verdict[f"{name}/cuda/float32"]
    assert found.status == status and detail in found.detail
    out = found.failed
    assert out == (status in ("wrong", "crashed"))
    assert op.runs("auto", x) == ("torch" if out else "cuda")
    reason = op.reasons(x)["cuda"]
    assert reason == (f"failed its check on this machine: {found.detail}" if out else None)
    assert op.choice("cuda", x).backend == "cuda", "forced, it runs still"
    assert op.runs("auto", x.half()) == "cuda", "another dtype was not checked"
    assert verdict[f"{behind}/cuda/float32"].status == status and (f"{behind}/triton/float32" in verdict) == out
    if out:
        assert verdict[f"{behind}/triton/float32"].status == "ok" and OPS[behind].runs("auto", x) == "triton"
        with recorded() as decisions:
            assert torch.equal(getattr(torch.ops.fasttx, f"{op.name}_fwd")(x, "auto"), 2 * x)
        assert decisions[0].choice == "torch" and "failed its check" in decisions[0].reason


def test_a_kernel_that_hangs_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "HANG_S", 1.0)
    with pytest.warns(UserWarning, match="hangs/cuda/float32 ran for more than 1 s; please report it"):
        assert check("hangs")["cuda"] == verdicts.Verdict("hung", "ran for more than 1 s")


def test_without_time_left_a_row_is_unchecked_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again at the next start, and not by the next patch of the same process."""
    monkeypatch.setattr(first_use, "RUN_S", 1.0)
    found = check("hangs")["cuda"]
    assert found == verdicts.Verdict("unchecked", "1 s were not enough")
    assert OPS[probes.name_of("hangs")].runs("auto", torch.ones(2)) == "cuda"
    monkeypatch.setattr(first_use, "COMMAND", ("no such program",))
    assert check("hangs")["cuda"] == found
    restart()
    assert "no child process" in check("hangs")["cuda"].detail


@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
def test_one_row_after_another(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What one kernel breaks is not held against the next: each that fails costs a process and nothing else."""
    for limit in ("RUN_S", "ALL_S"):
        monkeypatch.setattr(first_use, limit, 1000.0)  # six processes that import torch, on a busy machine
    kernels = ("poisons", "right", "crashes", "prints", "wrong", "unwritten")
    found = first_use.check(CPU, [(probes.name_of(kernel), torch.float32) for kernel in kernels])
    statuses = {name.split("/")[0]: verdict.status for name, verdict in found.items()}
    wanted = ("crashed", "ok", "crashed", "ok", "wrong", "wrong")
    assert statuses == {probes.name_of(kernel): status for kernel, status in zip(kernels, wanted)}
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("fasttx: checking 6 kernels on cpu: ") and err.count("\n") == 1


@pytest.mark.parametrize("why", ["switch", "fork", "daemon", "compiling", "program", "frozen"])
def test_when_no_check_is_made(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = {
        "switch": "FASTTX_FIRST_USE_CHECK=0",
        "fork": "this process was forked",
        "daemon": "this process was forked",
        "compiling": "a graph is being compiled",
        "program": "no program of Python is known",
        "frozen": "no program of Python is known",
    }[why]
    if why == "switch":
        monkeypatch.setenv(first_use.SWITCH, "0")
    elif why == "fork":
        monkeypatch.setattr(first_use, "_PROCESS", -1)
    elif why == "daemon":
        monkeypatch.setitem(first_use.multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    elif why == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    elif why == "program":
        monkeypatch.setattr(sys, "executable", "")
    else:
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert check("wrong")["cuda"] == verdicts.Verdict("unchecked", reason)
    assert OPS[probes.name_of("wrong")].runs("auto", torch.ones(2)) == "cuda"
    assert not verdicts.record_path(CPU).exists()


def test_ops_of_pytorch_alone_start_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU no op of the table has a kernel that "auto" takes."""
    monkeypatch.setattr(first_use, "COMMAND", ("no such program",))
    names = [name for name in OPS if not name.startswith("probe_")]
    assert first_use.check(CPU, [(name, torch.float32) for name in names]) == {}


def test_this_process_stays_as_it_is() -> None:
    torch.manual_seed(3)
    state, environment = torch.get_rng_state(), dict(os.environ)
    probes.LAUNCHED.clear()
    check("right")
    assert torch.equal(torch.get_rng_state(), state) and dict(os.environ) == environment
    assert probes.LAUNCHED == [], "the kernel ran elsewhere"


HOLDER = """
import sys, torch
from fasttx.trust import record
with record.lock(torch.device("cpu"), 0.0) as alone:
    print(alone, flush=True)
    sys.stdin.read()
"""


def test_one_process_checks_and_the_others_wait(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lock goes with the process that held it; who has waited long enough goes on unchecked."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    monkeypatch.setattr(first_use, "WAIT_S", 0.2)
    assert check("right")["cuda"] == verdicts.Verdict("unchecked", "another process was checking")
    assert capfd.readouterr().err == "fasttx: another process checks the kernels; waiting for it, 0 s at most\n"
    restart()
    holder.kill()
    holder.communicate()
    monkeypatch.setattr(first_use, "WAIT_S", 60.0)
    assert check("right")["cuda"].status == "ok"


def test_what_the_other_process_has_found_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> bool:
        record.write(CPU, {f"{probes.name_of('right')}/cuda/float32": verdicts.Verdict("ok")})
        return True

    monkeypatch.setattr(record, "_acquire", other)
    monkeypatch.setattr(first_use, "COMMAND", ("no such program",))
    assert check("right")["cuda"].status == "ok"


def test_the_child_ends_with_its_parent() -> None:
    child = subprocess.Popen(
        [*CHILD, "cpu", f"{probes.name_of('hangs')}/cuda/float32"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=first_use._environment(),
    )
    assert child.stdout is not None and json.loads(child.stdout.readline())["device"] == ""
    child.communicate(timeout=120)  # closes its stdin
    assert child.returncode == 1


def test_a_device_that_cannot_be_used_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "COMMAND", (sys.executable, "-c", 'print(\'{"device": "busy"}\')'))
    assert check("right")["cuda"] == verdicts.Verdict("unchecked", "the device could not be used: busy")
    restart()
    monkeypatch.setattr(first_use, "COMMAND", (sys.executable, "-c", "raise SystemExit(7)"))
    assert check("right")["cuda"] == verdicts.Verdict("unchecked", "the process that checks ended with code 7")


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
@pytest.mark.timeout(1200)
def test_every_kernel_of_triton_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real child, the real table."""
    monkeypatch.setattr(first_use, "COMMAND", ())
    monkeypatch.setattr(first_use, "HANG_S", 1000.0)
    rows = [verdicts.Row(name, "triton", torch.float32) for name in OPS if not name.startswith("probe_")]
    found = dict(first_use.run(CPU, rows, first_use.Clock(1000.0, 1000.0, 1000.0)))
    assert set(found) == set(map(str, rows)) and {verdict.status for verdict in found.values()} == {"ok"}, found


@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
@pytest.mark.slow
def test_recheck_forgets_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check("wrong", "right")
    name = probes.name_of("wrong", "right")
    record.write(CPU, {f"{name}/cuda/float32": verdicts.Verdict("ok")})
    found = first_use.recheck(CPU, [(name, torch.float32)])
    assert {row: verdict.status for row, verdict in found.items()} == {
        f"{name}/cuda/float32": "wrong",
        f"{name}/triton/float32": "ok",
    }


def test_lines_of_others_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an import prints is no verdict and no error, whatever bytes it is made of."""
    noise = 'import os; os.write(1, b\'Welcome\\n\\xff\\n[1]\\n7\\n{"row": "another", "status": "wrong"}\\n\');'
    code = f"{noise} import runpy, sys; sys.argv[0] = {CHILD[1]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    monkeypatch.setattr(first_use, "COMMAND", (sys.executable, "-c", code))
    assert check("right")["cuda"].status == "ok"


def test_a_child_elsewhere_is_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may see other devices than this process, or import another fasttx."""
    line = json.dumps({"device": "", "key": verdicts.key(CPU) | {"device": "cuda: another"}})
    monkeypatch.setattr(first_use, "COMMAND", (sys.executable, "-c", f"print({line!r})"))
    assert "another device" in check("right")["cuda"].detail


def test_what_pytorch_cannot_compute_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from fasttx.cli import check as child

    def lacking(*_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(child, "calls", lacking)
    told: list[dict[str, str]] = []
    found = child.check_row(f"{probes.name_of('right')}/cuda/float32", CPU, told.append)
    assert told == [], "nor where the process dies in it"
    assert found["status"] == "unchecked" and "PyTorch's own operators raised" in found["detail"]


def test_the_child_imports_what_this_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the working directory that has the name of a module is not run."""
    for name in ("json", "random", "torch", "fasttx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", ".")])
    monkeypatch.setattr(first_use, "COMMAND", ())
    row = verdicts.Row("softmax", "cuda", torch.float32)  # which no CPU runs: the child is there, and says so
    (found,) = dict(first_use.run(CPU, [row], first_use.Clock(60.0, 180.0, 30.0))).values()
    assert found.status == "crashed" and "BackendError" in found.detail


@pytest.mark.slow
def test_stderr_may_be_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    class Log:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    for stream in (None, Log()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert check("right")["cuda"].status == "ok"
        verdicts.record_path(CPU).unlink()
        restart()


def test_waiting_for_another_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has waited has so much less time to check: a rank of many is not held for twice the time."""

    def slow(*_: object) -> bool:
        time.sleep(1.1)
        return True

    monkeypatch.setattr(record, "_acquire", slow)
    monkeypatch.setattr(first_use, "ALL_S", 1.0)
    assert check("right")["cuda"].status == "unchecked"


@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
def test_doctor_runs_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its report is what a maintainer needs, and says that all is right only where it is."""
    from fasttx.cli import check as child

    check("wrong")
    name = probes.name_of("wrong")
    monkeypatch.setattr(child, "OPS", {name: OPS[name]})
    found = [result for result, _, _ in child._attempts(CPU) if result.backend == "cuda"]
    assert len(found) == len(child.DTYPES) and {result.status for result in found} == {""}
