"""Binary cross-entropy with logits: kernels and composition against float64 and against torch's own function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from fasttx.cli.check import DTYPES
from fasttx.ops.binary_cross_entropy import cuda as binary_cross_entropy_cuda
from fasttx.ops.binary_cross_entropy.op import BINARY_CROSS_ENTROPY
from fasttx.ops.checks import MEAN, NONE, SUM
from fasttx.ops.dispatch import resolve
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate, error

fwd = torch.ops.fasttx.binary_cross_entropy_fwd.default
bwd = torch.ops.fasttx.binary_cross_entropy_bwd.default

WRITTEN = ["triton", "cuda"]
REDUCTIONS = {NONE: "none", MEAN: "mean", SUM: "sum"}

SHAPES = [
    (),
    (1,),
    (3, 5),  # less than one program
    (1024,),  # exactly one
    (2, 1031),  # a prime: two whole ones and a masked rest
    (2048,),  # CUDA C++: exactly one
    (3, 1367),  # CUDA C++: two whole ones and a rest
    (2, 3, 200),  # more dimensions, a masked rest
]


@pytest.fixture(autouse=True)
def _runnable(request: pytest.FixtureRequest, device: torch.device) -> None:
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    name = parameters.get("written", parameters.get("backend"))
    if name in WRITTEN:
        x = torch.ones(1, device=device)
        reason = BINARY_CROSS_ENTROPY.reasons(x, x)[name]
        if reason is not None:
            pytest.skip(f"binary_cross_entropy on {name}: {reason}")


def launchers(written: str):
    """(forward, backward) of a backend, below the operators and their checks."""
    impl = next(impl for impl in BINARY_CROSS_ENTROPY.impls if impl.backend == written)
    return resolve(impl.fwd), resolve(impl.bwd)


def by_torch(
    dloss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int, dtype
):
    x = x.to(dtype).detach().requires_grad_()
    weight, pos_weight = (None if w is None else w.to(dtype) for w in (weight, pos_weight))
    loss = torch_functional.binary_cross_entropy_with_logits(
        x, target.to(dtype), weight, reduction=REDUCTIONS[reduction], pos_weight=pos_weight
    )
    return loss.detach(), torch.autograd.grad(loss, x, dloss.to(dtype))[0]


def verify(
    backend: str, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> None:
    args = (x, target, weight, pos_weight, reduction)
    dloss = torch.randn(x.shape if reduction == NONE else (), device=x.device)
    LAUNCHES.clear()
    loss, dx = fwd(*args, backend), bwd(dloss, *args, backend)
    assert dict(LAUNCHES) == {("binary_cross_entropy_fwd", backend): 1, ("binary_cross_entropy_bwd", backend): 1}
    single, _ = by_torch(dloss, *args, torch.float32)
    _, same = by_torch(dloss, *args, x.dtype)
    assert_as_accurate(loss, single, BINARY_CROSS_ENTROPY.fwd.reference(*args), "loss")
    assert_as_accurate(dx, same, BINARY_CROSS_ENTROPY.bwd.reference(dloss, *args), "dx", by="element")


@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_regime(shape: tuple[int, ...], dtype: torch.dtype, backend: str, device: torch.device) -> None:
    x, y = (torch.randn(shape) * 5).to(device, dtype), torch.rand(shape).to(device, dtype)
    for reduction in REDUCTIONS:
        verify(backend, x, y, None, None, reduction)


@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
@pytest.mark.parametrize("pos", [None, (5,), (3, 1)], ids=str)
@pytest.mark.parametrize("weight", [None, (), (1,), (5,), (3, 5), (3, 1), (1, 1, 5), (2, 1, 5), (2, 3, 5)], ids=str)
def test_weights_broadcast(weight, pos, backend: str, device: torch.device) -> None:
    x, y = torch.randn(2, 3, 5, device=device), torch.rand(2, 3, 5, device=device)
    w = None if weight is None else torch.rand(weight).to(device)
    v = None if pos is None else torch.rand(pos).to(device) * 3
    for reduction in REDUCTIONS:
        verify(backend, x, y, w, v, reduction)


@pytest.mark.parametrize("written", WRITTEN)
def test_any_shape_and_weights(device, written) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
    @hypothesis.given(
        shape=st.lists(st.integers(1, 40), min_size=0, max_size=3),
        kept=st.lists(st.booleans(), min_size=6, max_size=6),
        depth=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        reduction=st.sampled_from(sorted(REDUCTIONS)),
        dtype=st.sampled_from(list(DTYPES.values())),
    )
    def holds(shape, kept, depth, reduction, dtype) -> None:
        def some(depth: int, kept: list[bool]) -> Tensor:
            sizes = shape[max(len(shape) - depth, 0) :]
            return torch.rand([n if k else 1 for n, k in zip(sizes, kept, strict=False)]).to(device, dtype)

        x, y = (torch.randn(shape) * 3).to(device, dtype), torch.rand(shape).to(device, dtype)
        args = (x, y, some(depth[0], kept[:3]), some(depth[1], kept[3:]), reduction)
        loss, ref = fwd(*args, written), BINARY_CROSS_ENTROPY.fwd.reference(*args)
        assert error(loss, ref) <= 4e-6 * max(1.0, float(ref.abs().max()))
        dloss = torch.ones_like(loss)
        ref_dx = BINARY_CROSS_ENTROPY.bwd.reference(dloss, *args)
        assert error(bwd(dloss, *args, written), ref_dx) <= max(2e-6, torch.finfo(dtype).eps) * max(
            1.0, float(ref_dx.abs().max())
        )

    holds()


@pytest.mark.parametrize("written", WRITTEN)
def test_tails_and_infinities(written: str, device: torch.device) -> None:
    """The loss of a sure and right positive, exp(-30), keeps its digits; infinities and NaN are torch's."""
    x = torch.tensor([30.0, 80.0, -80.0, 0.0], device=device)
    y = torch.tensor([1.0, 1.0, 1.0, 0.5], device=device)
    loss = fwd(x, y, None, None, NONE, written)
    torch.testing.assert_close(
        loss.double(), BINARY_CROSS_ENTROPY.fwd.reference(x, y, None, None, NONE), rtol=1e-6, atol=0.0
    )
    inf = float("inf")
    x = torch.tensor([inf, -inf, inf, -inf, float("nan")], device=device)  # right and wrong, by the targets below
    y = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0], device=device)
    expected = torch_functional.binary_cross_entropy_with_logits(x, y, reduction="none")
    torch.testing.assert_close(fwd(x, y, None, None, NONE, written), expected, equal_nan=True)


@pytest.mark.parametrize("written", WRITTEN)
def test_strided_inputs_are_left_alone(written: str, device: torch.device) -> None:
    whole = torch.randn(7, 6, device=device)
    before = whole.clone()
    x = whole.t()[::2]
    y = torch.rand(7, 3, device=device).t()
    weight = torch.rand(7, 2, device=device)[:, 0]
    for reduction in REDUCTIONS:
        verify(written, x, y, weight, None, reduction)
    assert torch.equal(whole, before)


@pytest.mark.parametrize("numel, period", [(2**20 - 1, 2**20 - 1), (2**20, 2**21)])
def test_a_long_period_is_spread_out(numel: int, period: int) -> None:
    """In CUDA C++ positions within a period, times the elements of a tile, are counted in 32 bits."""
    x, weight = torch.empty(2, numel, device="meta"), torch.empty(1, numel, device="meta")
    repeated = binary_cross_entropy_cuda._repeated(weight, x)
    assert repeated["values"].numel() == repeated["period"] == period


@pytest.mark.parametrize("written", WRITTEN)
def test_expanded_dloss(written: str, device: torch.device) -> None:
    x, y = torch.randn(3, 5, device=device), torch.rand(3, 5, device=device)
    dloss = torch.tensor(2.0, device=device).expand(3, 5)
    expected = BINARY_CROSS_ENTROPY.bwd.reference(dloss, x, y, None, None, NONE)
    assert error(bwd(dloss, x, y, None, None, NONE, written), expected) < 1e-6


@pytest.mark.parametrize("written", WRITTEN)
def test_writes_stay_inside(written: str, device: torch.device) -> None:
    binary_cross_entropy_fwd, binary_cross_entropy_bwd = launchers(written)
    n, guard = 2 * 1024 + 3, 1024
    x, y = torch.randn(n, device=device), torch.rand(n, device=device)
    for reduction in REDUCTIONS:
        size = n if reduction == NONE else 1
        loss, dx = (torch.full((k + 2 * guard,), float("nan"), device=device) for k in (size, n))
        for whole in (loss, dx):
            whole[:guard], whole[-guard:] = 77.0, 77.0
        binary_cross_entropy_fwd(loss[guard : guard + size], x, y, None, None, reduction)
        binary_cross_entropy_bwd(dx[guard:-guard], torch.ones(size, device=device), x, y, None, None, reduction)
        for whole in (loss, dx):
            assert bool((whole[:guard] == 77.0).all()) and bool((whole[-guard:] == 77.0).all())
            assert not bool(whole.isnan().any())


@pytest.mark.parametrize("written", WRITTEN)
def test_bitwise_deterministic(written: str, device: torch.device) -> None:
    x, y = torch.randn(5000, device=device), torch.rand(5000, device=device)
    assert torch.equal(fwd(x, y, None, None, MEAN, written), fwd(x, y, None, None, MEAN, written))


@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
def test_empty(backend: str, device: torch.device) -> None:
    x = torch.empty(0, 3, device=device)
    for reduction, name in REDUCTIONS.items():
        loss = fwd(x, x, None, None, reduction, backend)
        expected = torch_functional.binary_cross_entropy_with_logits(x, x, reduction=name)
        assert loss.shape == expected.shape and error(loss, expected) == 0.0
        assert bwd(torch.ones_like(loss), x, x, None, None, reduction, backend).shape == (0, 3)


@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
def test_opcheck(backend: str, device: torch.device) -> None:
    x, y = torch.randn(3, 5, device=device), torch.rand(3, 5, device=device)
    args = (x, y, torch.rand(5, device=device), torch.rand(3, 1, device=device), MEAN, backend)
    torch.library.opcheck(fwd, args)
    torch.library.opcheck(bwd, (torch.ones((), device=device), *args))


def test_gradient_of_the_reference() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    y, w, v = torch.rand(3, 5), torch.rand(5), torch.rand(3, 1)
    loss = BINARY_CROSS_ENTROPY.fwd.reference(x, y, w, v, MEAN)
    (expected,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(BINARY_CROSS_ENTROPY.bwd.reference(torch.ones(()), x.detach(), y, w, v, MEAN), expected)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.randn(3, 5), torch.rand(3, 4), None, None, 1), "Target size"),
        ((torch.randn(3, 5).double(), torch.rand(3, 5), None, None, 1), "x: got .*; allowed"),
        ((torch.randn(3, 5), torch.ones(3, 5).long(), None, None, 1), "target: got .*; allowed"),
        ((torch.randn(3, 5), torch.rand(3, 5), torch.rand(4), None, 1), "weight: got .*; allowed is what broadcasts"),
        ((torch.randn(3, 5), torch.rand(3, 5), None, torch.rand(2, 3, 5), 1), "pos_weight: got .* broadcasts"),
        ((torch.randn(3, 5), torch.rand(3, 5), None, None, 7), "reduction"),
    ],
    ids=["shape", "float64", "integer target", "weight", "pos_weight", "reduction"],
)
def test_wrong_input_is_named(args: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fwd(*args, "auto")


def test_cost_counts_the_bytes() -> None:
    x = torch.empty(8, dtype=torch.bfloat16)
    assert BINARY_CROSS_ENTROPY.fwd.cost(x, x, None, None, NONE)[1] == 8 * 2 * 2 + 8 * 4
    assert BINARY_CROSS_ENTROPY.bwd.cost(torch.empty(8), x, x, None, None, NONE)[1] == 8 * 4 + 3 * 8 * 2
