"""Peers of the ops: what each adapter passes on, and that a peer which cannot run is named with its reason."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bench.kernels
from bench import workloads
from bench.accuracy import check_peer
from bench.kernels import Row, run
from bench.op_case import OpCase, Workload
from bench.peers import Peer, find, wide

CPU = torch.device("cpu")
FP32 = torch.float32


def built(workload: Workload) -> dict[str, Peer | str]:
    return workload.build(CPU, "tiny", 0).peers


def accurate(peer: Peer | str) -> bool:
    assert isinstance(peer, Peer), peer
    judged = check_peer(peer)
    assert judged is not None
    return judged[0] <= judged[1]


# --------------------------------------------------------------------------------------------- packages, as stand-ins


def liger_cross_entropy(
    input: Tensor, target: Tensor, weight: None = None, size_average: None = None, ignore_index: int = -100,
    reduce: None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    return F.cross_entropy(wide(input), target, ignore_index=ignore_index, label_smoothing=label_smoothing)


def liger_fused_linear_cross_entropy(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, ce_weight: None = None,
    ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    return F.cross_entropy(wide(F.linear(input, weight, bias)), target, ignore_index=ignore_index)


def liger_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def liger_softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def linear_cross_entropy(e: Tensor, c: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    return F.cross_entropy(wide(e @ c.mT), targets, ignore_index=ignore_index)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for Liger 0.8.5 and cut-cross-entropy 25.1.1: their names and signatures, PyTorch's arithmetic."""
    functions = {
        "liger_kernel.transformers.functional": (
            liger_cross_entropy, liger_fused_linear_cross_entropy, liger_layer_norm, liger_softmax,
        ),
        "cut_cross_entropy": (linear_cross_entropy,),
    }  # fmt: skip
    for name, found in functions.items():
        for parent in (name.rsplit(".", n)[0] for n in range(name.count("."), -1, -1)):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        for function in found:
            setattr(sys.modules[name], function.__name__, function)


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = ("liger_kernel", "cut_cross_entropy")
    for name in {*roots, *(name for name in sys.modules if name.partition(".")[0] in roots)}:
        monkeypatch.setitem(sys.modules, name, None)


OTHERS = {
    "softmax": (workloads.softmax("softmax", 4, 50, FP32), ("liger",)),
    "layer norm": (workloads.dropout_add_layer_norm("n", 5, 40, FP32, residual=False), ("liger",)),
    "sum and layer norm": (workloads.dropout_add_layer_norm("n", 5, 40, FP32), ("liger",)),
    "cross-entropy": (workloads.cross_entropy("c", 9, 40, FP32, smoothing=0.1), ("liger",)),
    "vocabulary with a bias": (
        workloads.linear_cross_entropy("v", 9, 40, 16, FP32), ("liger", "F.linear_cross_entropy"),
    ),
    "vocabulary": (
        workloads.linear_cross_entropy("v", 9, 40, 16, FP32, bias=False),
        ("liger", "F.linear_cross_entropy", "cut-cross-entropy"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_adapters_pass_everything_on(case: str, packages: None) -> None:
    workload, names = OTHERS[case]
    peers = built(workload)
    for name in names:
        if name.startswith("F.") and not hasattr(F, name[2:]):  # PyTorch before 2.13
            assert "has no linear_cross_entropy in this version" in str(peers[name])
        else:
            assert accurate(peers[name]), name


def test_gradients_start_from_rounded_numbers() -> None:
    """The float64 reference is given the dout of the peer's dtype, else its rounding would widen every bound."""
    x = torch.randn(9, 9).bfloat16()
    judged = check_peer(Peer(lambda x: x * 1.0, (x,), exact=lambda x: x * 1.0))
    assert judged is not None and judged[0] == 0.0


def test_biases_are_named_where_a_peer_takes_none(packages: None) -> None:
    assert built(OTHERS["vocabulary with a bias"][0])["cut-cross-entropy"] == "takes no bias"


@pytest.mark.parametrize("case", ["softmax", "cross-entropy", "vocabulary with a bias"])
def test_liger_itself(case: str) -> None:
    """In Triton's interpreter, or on a GPU. Its layer norm, and cut-cross-entropy, do not run in the interpreter."""
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed: fasttx[peers]")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert accurate(OTHERS[case][0].build(device, "tiny", 0).peers["liger"])


def test_cut_cross_entropy_itself_is_there() -> None:
    pytest.importorskip("cut_cross_entropy", reason="cut-cross-entropy is not installed: fasttx[peers]")
    assert isinstance(built(OTHERS["vocabulary"][0])["cut-cross-entropy"], Peer)


def test_reasons(monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    liger = find("liger_kernel.transformers.functional", "liger_softmax")
    assert isinstance(liger, str) and liger.startswith("not installed: liger_kernel")
    assert find("torch.nn.functional", "no_such") == "torch.nn.functional has no no_such in this version"
    assert find("torch.nn.functional", "gelu", CPU) is F.gelu  # a rehearsal: the interpreter is on in these tests
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert find("torch.nn.functional", "gelu", CPU) == "needs a GPU"
    assert find("torch.nn.functional", "gelu", torch.device("cuda")) is F.gelu


def test_a_package_that_lacks_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("needy", "x") == "needy does not import: No module named 'no_such_package_at_all'"
    (tmp_path / "broken.py").write_text("raise OSError('libcuda.so.1: not found')\n")
    assert find("broken", "x") == "broken does not import: OSError: libcuda.so.1: not found"


# ---------------------------------------------------------------------------------------------------------- attention


def forward_agrees(peer: Peer | str) -> None:
    """flex_attention has no backward on a CPU; uncompiled, it is plain operators."""
    assert isinstance(peer, Peer) and peer.exact is not None
    with torch.no_grad():
        torch.testing.assert_close(peer.fn(*peer.inputs), peer.exact(*peer.inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"ragged": "mask"}])
def test_flex_attention(options: dict[str, Any]) -> None:
    forward_agrees(built(workloads.attention("a", 2, 24, 2, 16, FP32, **options))["flex_attention"])


def varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and max_q == max_k == int(cu_seq_q.diff().max())
    parts = []
    for i, j in zip(cu_seq_q.tolist(), cu_seq_k.tolist()[1:], strict=False):
        q, k, v = (x[i:j].transpose(0, 1) for x in (query, key, value))
        parts.append((torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_packed_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    peers = built(workloads.attention("a", 2, 24, 2, 16, FP32, ragged="packed"))
    forward_agrees(peers["flex_attention[packed]"])
    assert accurate(peers["varlen_attn"]) and accurate(peers["sdpa[math]"])


def test_dropout_is_a_reason() -> None:
    peers = built(workloads.attention("a", 2, 24, 1, 16, ragged="packed", dropout_p=0.1))
    assert {peers[name] for name in ("varlen_attn", "flex_attention", "flex_attention[packed]")} == {"has no dropout"}


# --------------------------------------------------------------------------------------------------------------- rows


def measured(monkeypatch: pytest.MonkeyPatch, out: Path, workload: Workload, quick: bool = False) -> list[Row]:
    monkeypatch.setattr(bench.kernels, "select", lambda _: [workload])
    rows, _ = run(CPU, out / "k.csv", backend="torch", rehearsal=True, quick=quick)
    return rows


def with_peers(workload: Workload, peers: Callable[[OpCase], dict[str, Peer | str]]) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> OpCase:
        case = workload.build(device, size, seed)
        return OpCase(case.args, peers(case), case.step, case.given)

    return Workload(workload.name, workload.op, build)


def test_every_peer_has_a_row_in_each_direction(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_packages: None
) -> None:
    rows = measured(monkeypatch, tmp_path, workloads.linear_cross_entropy("l", 5, 20, 8, FP32), quick=True)
    names = {"fasttx[torch]", "eager", "torch.compile", "F.linear_cross_entropy", "liger", "cut-cross-entropy"}
    assert {(r.peer, r.direction) for r in rows} == {(n, d) for n in names for d in ("fwd", "bwd", "step")}
    status = {r.peer: r.status for r in rows}
    assert status["liger"].startswith("unavailable: not installed: liger_kernel")
    assert status["torch.compile"] == "not run: --quick compiles nothing"
    assert status["fasttx[torch]"] == status["eager"] == "ok"
    assert all((r.median_ms == "") == (r.status != "ok") for r in rows)


def test_gradients_made_in_forward(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Written over the logits, as Liger does: into copies of its own, without a gradient where none is asked for."""
    asked: list[bool] = []

    class Early(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            asked.append(logits.requires_grad)
            loss = logits.double().logsumexp(-1).mean().to(logits.dtype)
            logits.data.zero_()
            ctx.save_for_backward(logits.detach())
            return loss

        @staticmethod
        def backward(ctx: Any, dloss: Tensor) -> Tensor:
            return ctx.saved_tensors[0]

    kept: list[tuple[Tensor, Tensor]] = []

    def peers(case: OpCase) -> dict[str, Peer | str]:
        kept.append((case.args[0], case.args[0].clone()))
        return {"early": Peer(Early.apply, (case.args[0],), early_gradient=True)}

    rows = measured(monkeypatch, tmp_path, with_peers(workloads.cross_entropy("c", 5, 20, FP32), peers))
    status = {r.direction: (r.status, r.median_ms != "") for r in rows if r.peer == "early"}
    assert status["fwd"] == status["step"] == ("ok", True)
    assert status["bwd"][0].startswith("not timed: its gradient is made in forward") and not status["bwd"][1]
    assert {True, False} == set(asked)
    assert all(torch.equal(now, before) for now, before in kept)


def test_an_inexact_peer_is_timed_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def exact(x: Tensor) -> Tensor:
        return x.softmax(-1)

    def fails(x: Tensor) -> Tensor:
        raise NotImplementedError("no kernel\nfor this")

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.softmax(-1)

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> Tensor:
            raise RuntimeError("inference only")

    def scaled(x: Tensor) -> Tensor:
        return exact(x) + 0.001 * (x - x.detach())  # the gradient alone is wrong

    def peers(case: OpCase) -> dict[str, Peer | str]:
        inputs = (case.args[0],)
        return {
            "wrong": Peer(scaled, inputs, exact=exact), "fails": Peer(fails, inputs),
            "forward": Peer(Forward.apply, inputs), "right": Peer(exact, inputs, exact=exact),
        }  # fmt: skip

    rows = measured(monkeypatch, tmp_path, with_peers(workloads.softmax("s", 4, 20, FP32), peers))
    found = {(r.peer, r.direction): r for r in rows}
    wrong = found["wrong", "fwd"]
    assert wrong.status == "inexact" and float(wrong.median_ms) > 0 and float(wrong.error) > float(wrong.allowed)
    assert found["right", "bwd"].status == "ok" and float(found["right", "bwd"].error) >= 0
    assert found["fails", "fwd"].status == "unavailable: no kernel" and found["fails", "fwd"].median_ms == ""
    assert found["forward", "fwd"].status == "ok"
    assert found["forward", "bwd"].status == "unavailable: inference only"
