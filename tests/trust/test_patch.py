"""What a patch does with the check: which kernels it asks for, what the report, explain and doctor say of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trust.probes import OnCpu

pytest.importorskip("transformers", reason="transformers is not installed")

from models import model_zoo as zoo

import fasttx
from fasttx.ops import OPS, verdicts
from fasttx.trust import first_use, record

CPU = torch.device("cpu")
FAILS = """
import json, sys
print(json.dumps({"device": ""}))
for row in sys.argv[2:]:
    status = "wrong" if row.split("/")[0] in ("cross_entropy", "int8_linear", "quantize_per_token") else "ok"
    print(json.dumps({"row": row}))
    print(json.dumps({"row": row, "status": status, "detail": "fwd is off by 1.0e+00" if status == "wrong" else ""}))
    if status == "wrong":
        break
"""
"""A child that finds three ops wrong, without running any."""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A CPU on which "auto" would take a kernel of each op, and none of them was checked; with what was checked."""
    monkeypatch.setenv("FASTTX_CACHE", str(tmp_path))
    monkeypatch.delenv(first_use.SWITCH)
    monkeypatch.setattr(first_use, "COMMAND", (sys.executable, "-c", FAILS))
    monkeypatch.setattr(first_use, "_tried", set())
    impl = OnCpu("cuda", "trust.probes:right", "trust.probes:right", lambda *x: None, auto_on=("cpu",))
    before = [(op, op.impls) for op in OPS.values()]
    for op, _ in before:
        object.__setattr__(op, "impls", (impl,))
    verdicts.forget()
    asked: list[str] = []
    run = first_use.run

    def listen(device: torch.device, rows: Any, clock: Any) -> Any:
        asked.extend(map(str, rows))
        return run(device, rows, clock)

    monkeypatch.setattr(first_use, "run", listen)
    yield asked
    for op, impls in before:
        object.__setattr__(op, "impls", impls)
    verdicts.forget()


def model() -> Any:
    return zoo.tiny_model(zoo.BERT, "BertForSequenceClassification")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_ops_of_the_model_in_its_dtype_and_autocasts(dtype: torch.dtype, machine: list[str]) -> None:
    with pytest.warns(UserWarning, match="cross_entropy/cuda/.* fwd is off by 1.0e.00; please report it") as warned:
        report = fasttx.patch(model().to(dtype))
    assert {warning.filename for warning in warned} == {__file__}, "the user's line"
    ops = {"attention", "bias_gelu", "dropout_add_layer_norm", "embedding_layer_norm", "cross_entropy"}
    ops.add("binary_cross_entropy")  # the labels decide
    dtypes = {str(dtype).removeprefix("torch."), "bfloat16"}  # autocast's on a CPU
    wanted = {f"{op}/cuda/{name}" for op in ops for name in dtypes}
    wanted |= {f"{op}/cuda/float32" for op in ("cross_entropy", "binary_cross_entropy")}  # some heads' own
    assert sorted(machine) == sorted(wanted)
    assert set(report.checks["cpu"]) == set(machine)


@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
def test_both_dtypes_that_autocast_may_take(machine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its default is float16, and most blocks name bfloat16."""
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float16)
    fasttx.patch(model())
    assert {row.split("/")[2] for row in machine} == {"float32", "float16", "bfloat16"}


def test_the_report_says_what_runs_and_what_failed() -> None:
    with pytest.warns(UserWarning, match="kernels failed their check"):
        report = fasttx.patch(model())
    backends = {row.before: row.backend for row in report.replaced}
    assert backends["loss of BertForSequenceClassification"] == "torch"
    assert backends["product, bias, GELU"] == "cuda"
    text = str(report)
    assert "10 of 12 kernels for cpu were checked on this machine and are right" in text
    assert "cross_entropy/cuda/float32 wrong: fwd is off by 1.0e+00; it is left out" in " ".join(text.split())
    assert report.to_dict()["checks"]["cpu"]["cross_entropy/cuda/float32"]["status"] == "wrong"
    json.dumps(report.to_dict())


def test_only_attention_is_checked_where_that_is_all(machine: list[str]) -> None:
    fasttx.patch(model(), norm=False, mlp=False, loss=None)
    assert {row.split("/")[0] for row in machine} == {"attention"}


@pytest.mark.parametrize("how", ["patch", "block", "meta"])
def test_nothing_is_checked(how: str, machine: list[str]) -> None:
    """A forced backend runs whatever was found; a model on meta runs nowhere yet."""
    if how == "patch":
        report = fasttx.patch(model(), backend="torch")
    elif how == "block":
        with fasttx.backend("torch"):
            report = fasttx.patch(model())
    else:
        report = fasttx.patch(model().to("meta"))
    assert machine == [] and report.checks == {} and "checked on this machine" not in str(report)


@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
def test_a_second_patch_asks_nothing(machine: list[str]) -> None:
    first = fasttx.patch(model())
    n = len(machine)
    assert fasttx.patch(model()).checks == first.checks and len(machine) == n
    verdicts.forget()
    first_use._tried.clear()
    assert fasttx.patch(model()).checks == first.checks and len(machine) == n, "nor does the next start"


@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
def test_quantize_checks_the_ops_of_int8(machine: list[str]) -> None:
    report = fasttx.quantize(model())
    assert {row.split("/")[0] for row in machine} == {"int8_linear", "quantize_per_token"}
    assert {row.backend for row in report.replaced} == {"torch"}, "the report is of what runs now"


def test_doctor_shows_the_record_and_makes_it_anew(capsys: pytest.CaptureFixture[str], machine: list[str]) -> None:
    typer = pytest.importorskip("typer", reason="typer is not installed")
    from fasttx.cli import doctor

    record.write(CPU, {"softmax/cuda/float32": verdicts.Verdict("hung", "ran for more than 30 s")})
    with pytest.raises(typer.Exit):  # what is left out is a failure
        doctor.doctor(env=True)
    out = " ".join(capsys.readouterr().out.split())
    assert "0 of 1 kernels checked on cpu are right" in out
    assert "softmax/cuda/float32 hung: ran for more than 30 s" in out and machine == []
    with pytest.warns(UserWarning, match="kernels failed their check"), pytest.raises(typer.Exit):
        doctor.doctor(env=True, as_json=True, recheck=True)
    shown = json.loads(capsys.readouterr().out)
    (found,) = shown["records"]
    assert not shown["ok"]
    assert found["device"] == "cpu" and found["file"] == str(verdicts.record_path(CPU))
    assert found["rows"]["softmax/cuda/float32"] == {"status": "ok", "detail": ""}
    assert found["rows"]["cross_entropy/cuda/float16"]["status"] == "wrong"
    assert len(found["rows"]) == 3 * len(OPS)


def test_devices_of_one_kind_are_checked_once(machine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer", reason="typer is not installed")
    from fasttx.cli import doctor

    asked = []
    monkeypatch.setattr(first_use, "recheck", lambda device, wanted: asked.append(device))
    assert len(doctor._records(["cpu", "cpu"], True)) == 2 and asked == [CPU]
