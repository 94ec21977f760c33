"""The command line as a person or a script meets it: exit codes, JSON, and one clear message for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("typer", reason="typer is not installed: the command line needs fasttx[cli]")
pytest.importorskip("rich", reason="rich is not installed: the command line needs fasttx[cli]")

import torch
from typer.testing import CliRunner

import fasttx
from fasttx.cli import check, doctor, machine, supported
from fasttx.cli.app import app
from fasttx.ops import OPS
from fasttx.ops.cpu import launch as cpu
from fasttx.ops.cuda import launch as cuda

BLOCKER = """
import importlib.abc, runpy, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
sys.argv = ["fasttx", *{arguments!r}]
runpy.run_module("fasttx", run_name="__main__")
"""


def invoke(*arguments: str, code: int = 0, columns: int = 200) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def run_without(blocked: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, where `blocked` packages fail to import as if not installed."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked, arguments=arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).resolve().parents[2],
    )


def test_help_names_every_command() -> None:
    text = invoke("--help")
    for command in ("doctor", "supported", "tune", "demo"):
        assert command in text


def test_version() -> None:
    assert invoke("--version").strip() == f"fasttx {fasttx.__version__}"


def test_doctor_env_is_json() -> None:
    report = json.loads(invoke("doctor", "--env", "--json"))
    assert report["environment"]["fasttx"] == fasttx.__version__
    assert report["environment"]["devices"][0]["device"] == "cpu"
    assert "ops" not in report and report["ok"]


def test_doctor_env_as_table() -> None:
    text = invoke("doctor", "--env")
    assert "This machine" in text and "Ops, against" not in text


def test_doctor_reports_wrong_and_dead_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong op and a check that died are in the report, and both make the exit code 1."""
    wrong = check.Result("softmax", "fwd", "fp32", "cpu", "torch", "wrong", error=1.0, allowed=1e-6)
    monkeypatch.setattr(doctor, "_run_checks", lambda *_: iter([asdict(wrong)]))
    assert "WRONG 1e+00 > 1e-06" in invoke("doctor", code=1)
    monkeypatch.undo()
    monkeypatch.setattr(doctor.sys, "executable", "false")
    report = json.loads(invoke("doctor", "--json", code=1))
    assert {row["status"] for row in report["ops"]} == {"error"}
    assert "ended with code 1" in report["ops"][0]["detail"]


BUILT = {"compiled_kernels": "80,90a", "nvcc": None, "cpu_kernels": "avx2"}


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ({"driver": None, "torch_cuda": None}, "with its driver"),
        ({"driver": "580.1", "torch_cuda": None}, "a CUDA build of PyTorch"),
        ({"driver": "400.1", "torch_cuda": "13.0"}, "update the driver"),
    ],
)
def test_doctor_names_the_reason_of_no_gpu(found: dict[str, str | None], named: str) -> None:
    packages = {"torch": "2.13.0", "triton": "3.6.0", "transformers": "5.17.0"}
    (lack,) = machine.missing({"devices": [{"device": "cpu"}], "packages": packages, **BUILT, **found})
    assert lack.what == "NVIDIA GPU" and named in lack.how


def test_doctor_names_missing_packages_and_old_gpus() -> None:
    devices = [{"device": "cpu"}, {"device": "cuda:0", "capability": "7.5"}]
    packages = {"torch": "2.13.0", "triton": None, "transformers": None}
    found = {"devices": devices, "packages": packages, "driver": "580.1", "torch_cuda": "13.0"}
    lacks = machine.missing({**found, **BUILT})
    assert [lack.what.split()[0] for lack in lacks] == ["compute", "triton", "transformers"]


def test_doctor_names_what_keeps_triton_from_launching() -> None:
    found = {
        "devices": [{"device": "cpu"}, {"device": "cuda:0", "capability": "9.0"}],
        "driver": "580.1",
        "torch_cuda": "13.0",
        "packages": {"torch": "2.13.0", "triton": "3.6.0", "transformers": "5.17.0"},
        **BUILT,
    }
    assert machine.missing({**found, "triton_launcher": None}) == []
    (lack,) = machine.missing({**found, "triton_launcher": "needs a C compiler for Triton's launcher"})
    assert "Triton kernels" in lack.brings and "a C compiler" in lack.how


@pytest.mark.parametrize(("nvcc", "named"), [(None, "FASTTX_CUDA=1"), ("/opt/bin/nvcc", "with /opt/bin/nvcc")])
def test_doctor_names_what_would_bring_the_compiled_kernels(nvcc: str | None, named: str) -> None:
    packages = {"torch": "2.13.0", "triton": "3.6.0", "transformers": "5.17.0"}
    found = {"devices": [{"device": "cuda:0", "capability": "9.0"}], "packages": packages, "triton_launcher": None}
    (lack,) = machine.missing({**found, **BUILT, "compiled_kernels": None, "nvcc": nvcc})
    assert "fasttx._C" in lack.what and named in lack.how


def test_doctor_names_what_would_bring_the_kernels_for_the_cpu() -> None:
    packages = {"torch": "2.13.0", "triton": "3.6.0", "transformers": "5.17.0"}
    found = {"devices": [{"device": "cuda:0", "capability": "9.0"}], "packages": packages, "triton_launcher": None}
    (lack,) = machine.missing({**found, **BUILT, "cpu_kernels": None})
    assert "fasttx._C_cpu" in lack.what and "a C++ compiler" in lack.how and "int8" in lack.brings


@pytest.mark.parametrize(("form", "shown"), [("avx2", "fasttx._C_cpu, by avx2"), (None, "fasttx._C_cpu is not built")])
def test_the_kernels_for_the_cpu_are_shown(form: str | None, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = None if form is None else SimpleNamespace(form=lambda: form)
    monkeypatch.setattr(cpu, "_compiled", lambda: (module, "" if form else "fasttx._C_cpu is not built"))
    assert shown in " ".join(invoke("doctor", "--env").split())
    assert json.loads(invoke("supported", "--json"))["compiled_form"] == form


@pytest.mark.parametrize(("archs", "shown"), [("80,90a", "for sm_80,90a"), (None, "is not built")])
def test_compiled_kernels_are_shown(archs: str | None, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = (None, "fasttx._C is not built") if archs is None else (SimpleNamespace(ARCHS=archs), "")
    monkeypatch.setattr(cuda, "_compiled", lambda: compiled)
    assert shown in invoke("doctor", "--env")
    assert json.loads(invoke("supported", "--json"))["compiled_for"] == archs


def test_doctor_reports_an_unknown_backend_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTX_BACKEND", "nonsense")
    text = invoke("doctor", "--env", code=1)
    assert "FASTTX_BACKEND: got 'nonsense'; allowed is 'auto', 'cuda', 'triton', 'cpu', 'torch'" in text
    report = json.loads(invoke("doctor", "--env", "--json", code=1))
    assert report["ok"] is False and "FASTTX_BACKEND: got 'nonsense'" in report["environment"]["forced_backend_problem"]


def results(backend: str, status: str, detail: str = "") -> list[dict[str, object]]:
    """What `doctor` gets of every op in every dtype."""
    return [
        asdict(check.Result(name, direction, dtype, "cpu", backend, status, detail, error=4e-7, allowed=1e-6))
        for name, op in OPS.items()
        for direction in op.directions
        for dtype in check.DTYPES
    ]


def test_doctor_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and numbers stay whole, and a reason is written once, outside the table."""
    reason = "needs an NVIDIA GPU, the tensors are on 'cpu' (TRITON_INTERPRET=1 runs it on a CPU, for tests)"
    found = results("triton (interpreter)", "ok") + results("torch", "ok") + results("triton", "unavailable", reason)
    monkeypatch.setattr(doctor, "_run_checks", lambda *_: iter(found))
    text = invoke("doctor", columns=80)
    for name, op in OPS.items():
        rows = [line for line in text.splitlines() if line.split()[:1] == [name]]
        figures = "/".join(["4e-07"] * len(op.directions))
        assert [sum(cell == figures for cell in row.split()) for row in rows] == [3, 3], text
    assert " ".join(text.split()).count(f"triton for every op on cpu: {reason}") == 1
    assert max(map(len, text.splitlines())) <= 80


def test_doctor_gives_errors_of_integers_in_their_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a step of int8 is as exact as it can be, and no error of 5e-01 beside others of 1e-7."""
    with monkeypatch.context() as patch:
        patch.setattr(check, "BACKENDS", ("torch",))
        patch.setattr(check, "OPS", {name: op for name, op in OPS.items() if "quantize" in name or name == "softmax"})
        found = [row for row in check.run(torch.device("cpu")) if "op" in row]
    units = {row["op"]: row["unit"] for row in found if row["direction"] == "fwd"}
    rounded_floats = {"add_layer_norm_quantize", "bias_gelu_quantize"}
    assert {op for op, unit in units.items() if unit == "ulp"} == rounded_floats
    monkeypatch.setattr(doctor, "_run_checks", lambda *_: iter(found))
    text = invoke("doctor", columns=100)
    (row,) = [line for line in text.splitlines() if line.split()[:2] == ["bias_gelu_quantize", "torch"]]
    assert row.count(" ulp") == 3 and "0.5 ulp" in row and "5e-01" not in text
    assert "ulp: units of the last place of int8" in text


def test_doctor_shows_what_went_wrong_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results("torch", "ok") + results("triton", "error", "CompilationError: no kernel [image] for this device")
    monkeypatch.setattr(doctor, "_run_checks", lambda *_: iter(found))
    text = " ".join(invoke("doctor", columns=80, code=1).split())
    assert "triton for every op on cpu: CompilationError: no kernel [image] for this device" in text
    assert "error/error" in text


def test_help_flows() -> None:
    """A docstring's line ends are no line ends of the help, whose lines are as long as the terminal allows."""
    text = invoke("doctor", "--help", columns=80)
    assert " ".join(text.split()).count("The exit code is 1 if an op was wrong or crashed, or if FASTTX_BACKEND") == 1
    assert not any(line.rstrip().endswith("crashed, or") for line in text.splitlines())


def test_supported_is_json() -> None:
    report = json.loads(invoke("supported", "--json", "--device", "cpu", "--dtype", "fp32"))
    assert set(report["ops"]) == set(OPS)
    assert all(reasons["torch"] is None for reasons in report["ops"].values())
    assert report["ops_on_nvidia_gpu"]["softmax"]["triton"] == "capability 8.0"


def test_supported_as_tables() -> None:
    text = invoke("supported")
    for name in OPS:
        assert name in text
    for heading in ("Ops on", "NVIDIA GPU", "Models"):
        assert heading in text


def test_supported_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("attention", "kl_div"):  # as if two had no kernel in CUDA C++
        impls = tuple(impl for impl in OPS[name].impls if impl.backend != "cuda")
        monkeypatch.setitem(vars(OPS[name]), "impls", impls)
    text = invoke("supported", "--device", "cpu", columns=80)
    for name in (*OPS, *(row["class"] for row in fasttx.supported())):
        assert name in text  # whole, on one line
    assert text.count("cuda for attention, kl_div: not implemented") == 1
    assert text.count("compiled kernels, fasttx._C: ") == 1
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("supported", "--device", "tpu9"), "--device"),
        (("supported", "--device", "cuda:999"), "--device"),
        (("supported", "--dtype", "fp8"), "--dtype"),
        (("doctor", "--nonsense"), "--nonsense"),
        (("nonsense",), "nonsense"),
        (("demo", "--train", "/nonexistent/train.txt", "--dev", "/nonexistent/dev.txt"), "/nonexistent/train.txt"),
        (("demo", "--steps", "0"), "--steps"),
        (("demo", "--seed", "-1"), "--seed"),
        (("demo", "--seed", str(2**64)), "--seed"),
    ],
)
def test_bad_input_is_exit_code_2_and_names_it(arguments: tuple[str, ...], named: str) -> None:
    assert named in invoke(*arguments, code=2)


def test_supported_says_that_transformers_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supported, "models", lambda: None)
    assert "transformers is not installed (pip install 'fasttx[hf]')" in invoke("supported")


@pytest.mark.parametrize("blocked", ["typer", "rich"])
def test_without_the_extra_one_message_says_how_to_get_it(blocked: str) -> None:
    done = run_without({blocked}, "doctor")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert blocked in line and "pip install 'fasttx[cli]'" in line


def test_demo_without_transformers_says_how_to_get_it() -> None:
    done = run_without({"transformers"}, "demo", "--tiny")
    assert done.returncode == 2
    assert "pip install 'fasttx[hf]'" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_doctor_runs_every_op_that_can_run_here() -> None:
    """The whole command in a process of its own, as a person runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "fasttx", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report = json.loads(done.stdout)
    ran = {(row["op"], row["direction"], row["backend"]) for row in report["ops"] if row["status"] == "ok"}
    for op, row in OPS.items():
        for direction in row.directions:
            assert (op, direction, "torch") in ran
            if report["environment"]["packages"]["triton"]:
                assert any((op, direction, name) in ran for name in ("triton", "triton (interpreter)"))
