"""The Kullback-Leibler divergence: kernels and composition against float64 and against torch's own function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from fasttx.cli.check import DTYPES
from fasttx.ops.checks import MEAN, NONE, SUM
from fasttx.ops.dispatch import resolve
from fasttx.ops.kl_div import cuda as kl_div_cuda
from fasttx.ops.kl_div.op import BATCHMEAN, KL_DIV
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate, error

fwd = torch.ops.fasttx.kl_div_fwd.default
bwd = torch.ops.fasttx.kl_div_bwd.default

WRITTEN = ["triton", "cuda"]
REDUCTIONS = {NONE: "none", MEAN: "mean", SUM: "sum", BATCHMEAN: "batchmean"}
INF, NAN = float("inf"), float("nan")
pytestmark = pytest.mark.filterwarnings("ignore:.*'mean' divides:UserWarning")  # torch's


@pytest.fixture(autouse=True)
def _runnable(request: pytest.FixtureRequest, device: torch.device) -> None:
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    name = parameters.get("written", parameters.get("backend"))
    if name in WRITTEN:
        reason = KL_DIV.reasons(torch.ones(1, device=device))[name]
        if reason is not None:
            pytest.skip(f"kl_div on {name}: {reason}")


def pair(shape: tuple[int, ...], log_target: bool, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, target = (torch.randn(shape).log_softmax(-1) if shape else -torch.rand(()) for _ in range(2))
    return x.to(device, dtype), (target if log_target else target.exp()).to(device, dtype)


# less than a program; exactly one; whole ones and a masked rest; in CUDA C++, exactly one and two with a rest
SHAPES = [(), (1,), (3, 5), (1024,), (2, 1031), (2, 3, 200), (2048,), (3, 1367)]


@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_regime(shape, dtype, log_target: bool, backend: str, device: torch.device) -> None:
    x, target = pair(shape, log_target, device, dtype)
    for reduction, name in REDUCTIONS.items():
        if not shape and reduction == BATCHMEAN:
            continue
        dloss = torch.randn(shape if reduction == NONE else (), device=device)
        LAUNCHES.clear()
        loss = fwd(x, target, reduction, log_target, backend)
        dx = bwd(dloss, target, reduction, log_target, dtype, backend)
        assert dict(LAUNCHES) == {("kl_div_fwd", backend): 1, ("kl_div_bwd", backend): 1}
        leaf = x.detach().requires_grad_()
        single = torch_functional.kl_div(x.float(), target.float(), reduction=name, log_target=log_target)
        own = torch_functional.kl_div(leaf, target, reduction=name, log_target=log_target)
        (same,) = torch.autograd.grad(own, leaf, dloss.to(own.dtype))
        assert_as_accurate(loss, single, KL_DIV.fwd.reference(x, target, reduction, log_target), f"loss {name}")
        expected = KL_DIV.bwd.reference(dloss, target, reduction, log_target, dtype)
        assert_as_accurate(dx, same, expected, f"dx {name}", by="element")


@pytest.mark.parametrize("written", WRITTEN)
def test_any_shape_and_mixed_dtypes(device, written) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
    @hypothesis.given(
        shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
        reduction=st.sampled_from(sorted(REDUCTIONS)),
        dtypes=st.tuples(st.sampled_from(list(DTYPES.values())), st.sampled_from(list(DTYPES.values()))),
        log_target=st.booleans(),
    )
    def holds(shape, reduction, dtypes, log_target) -> None:
        x, target = pair(tuple(shape), log_target, device, torch.float32)
        x, target = x.to(dtypes[0]), target.to(dtypes[1])
        loss, ref = (
            fwd(x, target, reduction, log_target, written),
            KL_DIV.fwd.reference(x, target, reduction, log_target),
        )
        assert error(loss, ref) <= 4e-6 * max(1.0, float(ref.abs().max()))
        args = (torch.ones_like(loss), target, reduction, log_target, x.dtype)
        dx, ref = bwd(*args, written), KL_DIV.bwd.reference(*args)
        assert dx.dtype == x.dtype and error(dx, ref) <= max(2e-6, torch.finfo(x.dtype).eps) * max(
            1.0, float(ref.abs().max())
        )

    holds()


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("log_target", [False, True])
def test_zeros_infinities_and_nan_are_as_in_torch(device: torch.device, log_target: bool, written: str) -> None:
    values = [0.0, 1.0, -1.0, INF, -INF, NAN, 1e-40]
    x, target = (
        t.reshape(-1).contiguous().to(device) for t in torch.meshgrid(*[torch.tensor(values)] * 2, indexing="ij")
    )
    expected = torch_functional.kl_div(x, target, reduction="none", log_target=log_target)
    torch.testing.assert_close(fwd(x, target, NONE, log_target, written), expected, equal_nan=True)
    leaf = x.clone().requires_grad_()
    torch_functional.kl_div(leaf, target, reduction="none", log_target=log_target).sum().backward()
    found = bwd(torch.ones_like(x), target, NONE, log_target, x.dtype, written)
    torch.testing.assert_close(found, leaf.grad, equal_nan=True)


@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
def test_strided_inputs_are_left_alone(backend: str, device: torch.device) -> None:
    x, target = pair((7, 6), False, device, torch.float32)
    x, target = x.t()[::2], target.t()[::2]
    before = x.clone(), target.clone()
    loss = fwd(x, target, NONE, False, backend)
    assert loss.is_contiguous()
    torch.testing.assert_close(loss.double(), KL_DIV.fwd.reference(x, target, NONE, False))
    dloss = torch.tensor(2.0, device=device).expand(x.shape)
    dx = bwd(dloss, target, NONE, False, x.dtype, backend)
    assert dx.is_contiguous() and torch.equal(dx, -2.0 * target)
    assert torch.equal(x, before[0]) and torch.equal(target, before[1])


@pytest.mark.parametrize("written", WRITTEN)
def test_writes_stay_inside(written: str, device: torch.device) -> None:
    """Below the operators, at an address that is a multiple of 16 bytes and at one that is not."""
    impl = next(impl for impl in KL_DIV.impls if impl.backend == written)
    kl_div_fwd, kl_div_bwd = resolve(impl.fwd), resolve(impl.bwd)
    n = 2 * 1024 + 3
    x, target = pair((n,), False, device, torch.float32)
    for guard in (1024, 1023):
        for reduction in (NONE, SUM):
            size = n if reduction == NONE else 1
            loss, dx = (torch.full((k + 2 * guard,), float("nan"), device=device) for k in (size, n))
            for whole in (loss, dx):
                whole[:guard], whole[-guard:] = 77.0, 77.0
            kl_div_fwd(loss[guard : guard + size], x, target, reduction, False)
            kl_div_bwd(dx[guard:-guard], torch.ones(size, device=device), target, reduction, False, dx.dtype)
            for whole in (loss, dx):
                assert bool((whole[:guard] == 77.0).all()) and bool((whole[-guard:] == 77.0).all())
                assert not bool(whole.isnan().any())


@pytest.mark.parametrize("partials", [1, 2, 4096])
def test_a_block_takes_several_tiles(partials: int, device: torch.device, monkeypatch) -> None:
    """In CUDA C++ as many blocks as the workspace has room for: five tiles among one, two and five."""
    monkeypatch.setattr(kl_div_cuda, "PARTIALS", partials)
    x, target = pair((5, 1900), True, device, torch.float32)
    reason = KL_DIV.reasons(target)["cuda"]
    if reason is not None:
        pytest.skip(f"kl_div on cuda: {reason}")
    torch.testing.assert_close(fwd(x, target, SUM, True, "cuda"), fwd(x, target, SUM, True, "torch"))


@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
def test_opcheck(backend: str, device: torch.device) -> None:
    x, target = pair((3, 5), True, device, torch.float32)
    torch.library.opcheck(fwd, (x, target, MEAN, True, backend))
    torch.library.opcheck(bwd, (torch.ones((), device=device), target, MEAN, True, torch.bfloat16, backend))


@pytest.mark.parametrize("written", WRITTEN)
def test_sums_are_bitwise_deterministic_and_of_float32(written: str, device: torch.device) -> None:
    """The sum of float16 losses may leave float16, its mean need not."""
    x, target = torch.full((70, 1500), -4.0, device=device).half(), torch.ones(70, 1500, device=device).half()
    first = fwd(x, target, SUM, False, written)
    assert torch.equal(first, fwd(x, target, SUM, False, written)) and first.item() == 4.0 * 70 * 1500
    assert fwd(x, target, BATCHMEAN, False, written).item() == 6000.0


BAD = {
    "shape": (
        (torch.zeros(3, 4), torch.zeros(4), NONE, False),
        r"target: got \(4,\); allowed is the shape of x, \(3, 4\)",
    ),
    "x": ((torch.zeros(3).double(), torch.zeros(3), NONE, False), "x: got torch.float64; allowed is float32"),
    "target": ((torch.zeros(3), torch.zeros(3).long(), NONE, False), "target: got torch.int64; allowed is float32"),
    "reduction": ((torch.zeros(3), torch.zeros(3), 4, False), "reduction: got 4; allowed is 0 .none."),
    "no dim": (
        (torch.tensor(0.0), torch.tensor(0.0), BATCHMEAN, False),
        "got 3 .batchmean. for tensors without dims",
    ),
    "device": ((torch.zeros(3), torch.zeros(3, device="meta"), NONE, False), "target: got .* on meta; allowed is cpu"),
}


@pytest.mark.parametrize("arguments, text", BAD.values(), ids=BAD)
def test_wrong_arguments(arguments, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        KL_DIV.fwd.check(*arguments)


def test_wrong_arguments_of_backward() -> None:
    with pytest.raises(ValueError, match=r"dloss: got torch.float32 \(3,\); allowed is float32 \(\)"):
        KL_DIV.bwd.check(torch.zeros(3), torch.zeros(3), SUM, False, torch.float32)
    with pytest.raises(ValueError, match="dtype: got .*; allowed is float32"):
        KL_DIV.bwd.check(torch.zeros(()), torch.zeros(3), SUM, False, torch.float64)
