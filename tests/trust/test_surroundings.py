"""The check beside others: users, hosts, devices of one kind, a driver that compiles, a CUDA context, a backward."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from trust import probes
from trust.test_first_use import CPU, check, machine, restart
from trust.test_record import RIGHT

from fasttx.cli import check as child
from fasttx.cli import judge
from fasttx.ops import OPS, verdicts
from fasttx.ops.cuda import launch
from fasttx.ops.registry import LAUNCHES
from fasttx.trust import first_use, record
from fasttx.trust.progress import Clock, Progress

__all__ = ["machine"]
ROW = f"{probes.name_of('right')}/cuda/float32"


# ----------------------------------------------------------------------------------------------- users, hosts, devices


def test_each_user_has_a_record_of_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that two share, what one has written is not read by the other, nor is his lock in the way."""
    record.write(CPU, RIGHT)
    mine = verdicts.record_path(CPU)
    monkeypatch.setattr(os, "getuid", lambda: 4321, raising=False)
    restart()
    assert verdicts.known(CPU) == {} and verdicts.record_path(CPU) != mine
    with record.lock(CPU, 0.0) as alone:
        assert alone and record.write(CPU, RIGHT)
    monkeypatch.undo()
    assert mine.stat().st_mode & 0o077 == 0, "others have no use for it"


def test_two_hosts_with_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes may have the same number; a draft of one is none of the other."""
    replace, inside = os.replace, []

    def meanwhile(source: Any, target: Any) -> None:
        if not inside:
            inside.append(source)
            assert record.write(CPU, {"another/cuda/float32": verdicts.Verdict("ok")})
        replace(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    assert record.write(CPU, RIGHT) and inside
    assert verdicts.read(CPU) == RIGHT
    assert [path.suffix for path in verdicts.record_path(CPU).parent.iterdir()] == [".json"]


def test_a_verdict_holds_for_every_device_of_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the record cannot be written."""
    first, second = torch.device("cpu"), torch.device("cpu", 0)
    monkeypatch.setattr(record, "write", lambda *_: False)
    assert verdicts.known(second) == {}
    verdicts.add(first, {"softmax/triton/float32": verdicts.Verdict("wrong", "far off")})
    assert verdicts.why_out("softmax", "triton", second, torch.float32) == "failed its check on this machine: far off"
    verdicts.forget()
    verdicts.add(first, RIGHT)
    assert verdicts.known(second) == RIGHT


def test_the_driver_of_wsl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another driver makes another record there, too."""

    def missing(self: Path, *_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12040, raising=False)
    verdicts._driver.cache_clear()
    assert verdicts._driver() == "CUDA 12040"
    verdicts._driver.cache_clear()


# ------------------------------------------------------------------------------------------------ CUDA in this process


def test_no_check_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert first_use.why_not_now(torch.device("cuda", 0)) == "a CUDA graph is being captured"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert first_use.why_not_now(torch.device("cuda", 0)) is None


def test_cuda_is_not_touched_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its context nor its memory nor its random state: the child has its own."""

    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError("CUDA was used in the process of the user")

    for name in ("_lazy_init", "synchronize", "empty_cache", "get_rng_state", "manual_seed", "set_device"):
        monkeypatch.setattr(torch.cuda, name, touched)
    for name in ("_cuda_init", "_cuda_synchronize", "_cuda_emptyCache"):
        monkeypatch.setattr(torch._C, name, touched, raising=False)
    assert check("right")["cuda"].status == "ok"


# ---------------------------------------------------------------------------------------- a driver that compiles, noise

SLOW_TO_LOAD = """
import json, sys, time
def tell(**line): print(json.dumps(line), flush=True)
tell(device="")
tell(row=sys.argv[2])
tell(phase=sys.argv[3])
time.sleep(2)
tell(phase="running")
tell(row=sys.argv[2], status="ok", detail="")
"""


@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
@pytest.mark.parametrize("phase, status", [("compiling", "ok"), ("running", "hung")])
def test_time_in_which_the_driver_compiles(
    phase: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "child.py"
    script.write_text(SLOW_TO_LOAD.replace("sys.argv[3]", repr(phase)))
    monkeypatch.setattr(first_use, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(first_use, "HANG_S", 1.0)
    assert check("right")["cuda"].status == status


@pytest.mark.parametrize("loading", [True, False])
def test_the_child_says_when_a_launch_may_compile(loading: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the launch; what runs afterwards is the kernel."""
    monkeypatch.setattr(child, "compiles_when_loaded", lambda backend, device: loading)
    told: list[dict[str, str]] = []
    assert child.check_row(ROW, CPU, told.append)["status"] == "ok"
    assert told == [{"row": ROW}, {"phase": "compiling" if loading else "running"}, {"phase": "running"}]


def test_whose_code_the_driver_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_compiled", lambda: (types.SimpleNamespace(ARCHS="80,90a,ptx100"), ""))
    gpu = torch.device("cuda", 0)
    assert [launch.compiles_when_loaded(gpu, arch) for arch in (80, 86, 90, 100, 120)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert not launch.compiles_when_loaded(CPU, 100)


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress("cuda: a GPU", 2, Clock(60.0, 180.0, 30.0), first_use.SWITCH)
    for _ in range(2):
        bar.step()
    bar.end()
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert shown.startswith(
        "fasttx: checking 2 kernels on cuda: a GPU, once on this machine (at most 60 s, 180 s where"
    )
    assert [part[part.index("[") :] for part in shown.split("\r\x1b[K")[1:]] == ["[..]", "[#.]", "[##]\n"]


@pytest.mark.filterwarnings("ignore:fasttx. kernels failed")
def test_what_a_kernel_complains_of_is_kept_for_the_report() -> None:
    found = check("complains")["cuda"]
    assert found.status == "crashed" and "line 7: misaligned address" in found.output
    restart()
    name = f"{probes.name_of('complains')}/cuda/float32"
    assert "line 7: misaligned address" in verdicts.to_dict(CPU)["rows"][name]["output"], "doctor --json"
    json.dumps(verdicts.to_dict(CPU))
    assert set(verdicts.Verdict("ok")._asdict()) == {"status", "detail", "output"}


# --------------------------------------------------------------------------------------------- dtypes that are mixed


@pytest.mark.parametrize(
    "name", ["add_layer_norm_quantize", "bias_gelu", "bias_gelu_quantize", "dropout_add_layer_norm", "int8_linear"]
)
def test_weights_in_float32_beside_activations_in_half(name: str) -> None:
    """As autocast gives them."""
    mixed = []
    for call in judge.calls(OPS[name], CPU, torch.bfloat16)["fwd"]:
        dtypes = dict(zip(OPS[name].fwd.argument_names(), call.arguments))
        weights = [dtypes[key].dtype for key in ("weight", "bias") if isinstance(dtypes.get(key), torch.Tensor)]
        mixed.append(
            torch.float32 in weights and torch.bfloat16 in {x.dtype for x in (*call.composed, *tensors(dtypes))}
        )
    assert any(mixed)


def tensors(arguments: dict[str, Any]) -> list[torch.Tensor]:
    return [x for x in arguments.values() if isinstance(x, torch.Tensor)]


# ---------------------------------------------------------------------------- a verdict between forward and backward


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
def test_backward_runs_where_forward_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their dropout would be two: a verdict that comes between them holds from the next forward on."""
    op = OPS["softmax"]
    before = op.impls
    here = tuple(dataclasses.replace(impl, auto_on=("cpu",)) for impl in before if impl.backend == "triton")
    object.__setattr__(op, "impls", here)
    try:
        x, state = torch.randn(4, 33), torch.tensor([1234, 5])
        options = (None, state, 1.0, 0.25, False, "auto")

        def run(*verdict: verdicts.Verdict) -> tuple[torch.Tensor, dict[str, int]]:
            LAUNCHES.clear()
            torch.ops.fasttx.softmax_fwd(x, *options)
            for each in verdict:
                verdicts.add(CPU, {"softmax/triton/float32": each})
            dx = torch.ops.fasttx.softmax_bwd(torch.ones(4, 33), x, *options)
            return dx, {f"{name} {backend}": n for (name, backend), n in LAUNCHES.items()}

        wanted, _ = run()
        found, ran = run(verdicts.Verdict("wrong", "far off"))
        assert ran == {"softmax_fwd triton": 1, "softmax_bwd triton": 1} and torch.equal(found, wanted)
        assert run()[1] == {"softmax_fwd torch": 1, "softmax_bwd torch": 1}
    finally:
        object.__setattr__(op, "impls", before)
