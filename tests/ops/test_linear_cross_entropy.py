"""Linear cross-entropy, kernels and composed, against float64 and against torch's linear and cross_entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fasttx.cli.check import DTYPES
from fasttx.kernels import logit_chunks
from fasttx.ops.checks import MEAN, NONE, SUM
from fasttx.ops.dispatch import resolve
from fasttx.ops.linear_cross_entropy import composed
from fasttx.ops.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate, error

fwd = torch.ops.fasttx.linear_cross_entropy_fwd.default
bwd = torch.ops.fasttx.linear_cross_entropy_bwd.default
REDUCTIONS = {NONE: "none", MEAN: "mean", SUM: "sum"}
NAMES = ("dx", "dweight", "dbias")
ALL = (True, True, True)

SHAPES = [
    (1, 1, 1),  # rows, classes, features: one of each
    (11, 9, 4),  # narrow rows of logits
    (9, 300, 17),  # wide rows; neither classes nor features a multiple of a vector
]


@pytest.fixture(params=["triton", "cuda", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[0, 4], ids=["one chunk", "chunks of 4"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows a chunk, in the launcher and in the composition; 0 for what they choose, which is everything at once."""
    if request.param:
        cut_into(monkeypatch, request.param)
    return request.param


def launchers(backend: str):
    """Of forward and backward."""
    (row,) = [impl for impl in LINEAR_CROSS_ENTROPY.impls if impl.backend == backend]
    return resolve(row.fwd), resolve(row.bwd)


def cut_into(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for module in (logit_chunks, composed):
        monkeypatch.setattr(module, "rows_at_a_time", lambda n_rows, *_: min(rows, n_rows))


def make(n_rows: int, n_cols: int, in_features: int, dtype: torch.dtype, device: torch.device, options: bool = False):
    """(x, weight, bias, target, class weights): logits of about unit size; some targets are ignored."""
    x = torch.randn(n_rows, in_features)
    weight, bias = torch.randn(n_cols, in_features) * 2 / in_features**0.5, torch.randn(n_cols)
    target = torch.randint(n_cols, (n_rows,))
    target[0], target[-1] = n_cols - 1, 0
    target[1::3] = -100
    class_weight = (torch.rand(n_cols) + 0.25).to(device, dtype) if options else None
    x, weight, bias = (t.to(device, dtype) for t in (x, weight, bias))
    return x, weight, bias, target.to(device), class_weight


def by_torch(dloss: Tensor, given: tuple, smoothing: float, reduction: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(loss, dx, dweight, dbias) of torch's functions, everything in `dtype`."""
    x, weight, bias, target, class_weight = given
    leaves = [t.to(dtype).detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    loss = torch_functional.cross_entropy(
        torch_functional.linear(*leaves), target, None if class_weight is None else class_weight.to(dtype),
        reduction=REDUCTIONS[reduction], label_smoothing=smoothing,
    )  # fmt: skip
    return loss.detach(), *torch.autograd.grad(loss, leaves, dloss.to(dtype))


def verify(backend: str, given: tuple, smoothing: float = 0.0, reduction: int = MEAN) -> None:
    x, _, bias = given[:3]
    dloss = torch.randn((x.shape[0],) if reduction == NONE else (), device=x.device)
    options, needs = (-100, smoothing, reduction), (True, True, bias is not None)
    LAUNCHES.clear()
    loss, lse, total = fwd(*given, *options, backend)
    grads = bwd(dloss, *given, lse, total, *needs, *options, backend)
    assert dict(LAUNCHES) == {("linear_cross_entropy_fwd", backend): 1, ("linear_cross_entropy_bwd", backend): 1}

    ref = LINEAR_CROSS_ENTROPY.fwd.reference(*given, *options)
    ref_grads = LINEAR_CROSS_ENTROPY.bwd.reference(dloss, *given, ref[1], ref[2], *needs, *options)
    same = by_torch(dloss, given, smoothing, reduction, x.dtype)
    assert_as_accurate(loss.to(x.dtype), same[0], ref[0], "loss")
    own_lse = torch.logsumexp(torch_functional.linear(*(t for t in given[:3] if t is not None)).float(), 1)
    assert_as_accurate(lse, own_lse.masked_fill(given[3] == -100, 0.0), ref[1], "lse")
    assert error(total, ref[2]) <= 1e-6 * max(1.0, float(ref[2]))
    for name, grad, same_grad, expected in zip(NAMES, grads, same[1:], ref_grads, strict=False):
        assert_as_accurate(grad, same_grad, expected, name)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_regime(shape, dtype, chunk, backend, device) -> None:
    verify(backend, make(*shape, dtype, device))


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=REDUCTIONS.values())
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weight"])
def test_every_option(weighted, smoothing, reduction, chunk, backend, device) -> None:
    given = make(9, 37, 5, torch.float32, device, weighted)
    verify(backend, given, smoothing, reduction)
    verify(backend, (*given[:2], None, *given[3:]), smoothing, reduction)


def test_many_rows_are_summed(backend: str, device: torch.device) -> None:
    """More rows than the 1,024 that the last kernel takes in a pass."""
    verify(backend, make(1030, 5, 3, torch.float32, device, True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_chunks_are_summed_in_float32(dtype, backend, device, monkeypatch) -> None:
    """Gradients of one sign: a sum of 128 chunks in half precision would stop growing."""
    cut_into(monkeypatch, 4)
    x, weight, bias, target, _ = make(512, 5, 3, dtype, device)
    verify(backend, (x.abs(), weight, bias, torch.zeros_like(target), None), reduction=SUM)


def apart(t: Tensor) -> Tensor:
    """The same values at every other place, between others that would show in every result."""
    return torch.stack([t, torch.full_like(t, 99)], 1)[:, 0]


@pytest.mark.parametrize("layout", ["columns apart", "misaligned", "transposed"])
def test_strides(layout: str, chunk: int, backend: str, device: torch.device) -> None:
    x, weight, bias, target, class_weight = make(9, 301, 12, torch.bfloat16, device, True)
    if layout == "transposed":
        views = [t.t().contiguous().t() for t in (x, weight)]
    else:
        views = []
        for t in (x, weight):
            wide = torch.full((t.shape[0], 2 * t.shape[1] + 3), float("nan"), dtype=t.dtype, device=device)
            view = wide[:, ::2][:, : t.shape[1]] if layout == "columns apart" else wide[:, 3 : 3 + t.shape[1]]
            views.append(view.copy_(t))
    verify(backend, (*views, apart(bias), apart(target), apart(class_weight)))


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)], ids=NAMES)
def test_only_what_is_asked_for(needs, chunk, backend, device, monkeypatch) -> None:
    """A gradient that is not asked for is empty, and its product is not computed."""
    given = make(9, 37, 5, torch.float32, device)
    loss, lse, total = fwd(*given, -100, 0.0, MEAN, backend)
    expected = bwd(torch.ones_like(loss), *given, lse, total, *ALL, -100, 0.0, MEAN, backend)
    products = []
    for name in ("mm", "addmm"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _real=real, **k: products.append(1) or _real(*a, **k))
    in_place = Tensor.addmm_
    monkeypatch.setattr(Tensor, "addmm_", lambda *a, **k: products.append(1) or in_place(*a, **k))
    found = bwd(torch.ones_like(loss), *given, lse, total, *needs, -100, 0.0, MEAN, backend)
    rows = int((given[3] != -100).sum()) if backend == "torch" and device.type == "cpu" else 9
    assert len(products) == (-(-rows // chunk) if chunk else 1) * (1 if needs[2] else 2)
    for grad, whole, need in zip(found, expected, needs, strict=True):
        assert torch.equal(grad, whole) if need else grad.shape == (0,)


class Largest(TorchDispatchMode):
    """The bytes of the largest storage that any of PyTorch's operators returns; the caller's own do not count."""

    def __init__(self, own: tuple) -> None:
        super().__init__()
        self.own = {t.untyped_storage().data_ptr() for t in own if t is not None}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self.own:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


def test_no_more_logits_than_a_chunk(backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_into(monkeypatch, 4)
    given, options, one = make(64, 304, 2, torch.float32, device), (-100, 0.0, MEAN), torch.ones((), device=device)
    forward, backward = LINEAR_CROSS_ENTROPY.fwd, LINEAR_CROSS_ENTROPY.bwd
    with Largest(given) as largest:
        if backend != "torch":
            forward_of, backward_of = launchers(backend)
            outs = forward.fake(*given, *options)
            forward_of(*outs, *given, *options)
            rest = (one, *given, *outs[1:], *ALL, *options)
            backward_of(*backward.fake(*rest), *rest)
        else:
            outs = forward.torch(*given, *options)
            backward.torch(one, *given, *outs[1:], *ALL, *options)
    assert largest.bytes == 4 * 304 * 4


@pytest.mark.parametrize("n_cols", [5, 300], ids=["narrow", "wide"])
def test_all_ignored(n_cols: int, chunk: int, backend: str, device: torch.device) -> None:
    """As torch: the mean is NaN, the sum 0, every gradient 0 either way."""
    x, weight, bias, target, _ = make(9, n_cols, 4, torch.float32, device)
    target = torch.full_like(target, 2)
    for reduction, expected in ((MEAN, float("nan")), (SUM, 0.0)):
        options = (2, 0.1, reduction)
        loss, lse, total = fwd(x, weight, bias, target, None, *options, backend)
        assert error(loss, torch.tensor(expected)) == 0.0
        for grad in bwd(
            torch.ones((), device=device), x, weight, bias, target, None, lse, total, *ALL, *options, backend
        ):
            assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("kernels", ["triton", "cuda"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weight"])
@pytest.mark.parametrize("bad", [-1, 5_000_000_000], ids=["negative", "beyond int32"])
def test_index_out_of_range_is_an_error_or_nan(
    bad: int, weighted: bool, kernels: str, chunk: int, device: torch.device
) -> None:
    """On a CPU torch's error; a kernel that is not stopped gives NaN for that row and reads nothing outside."""
    forward_of, backward_of = launchers(kernels)
    given = make(9, 37, 4, torch.float32, device, weighted)
    given[3][0] = bad
    if device.type == "cpu":
        with pytest.raises(IndexError, match=f"Target {bad} is out of bounds."):
            fwd(*given, -100, 0.0, MEAN, "auto")
    for options in ((-100, 0.0, NONE), (-100, 0.1, MEAN)):
        outs = LINEAR_CROSS_ENTROPY.fwd.fake(*given, *options)
        forward_of(*outs, *given, *options)
        ref = LINEAR_CROSS_ENTROPY.fwd.reference(*given, *options)
        for out, expected in zip(outs[::2], ref[::2], strict=True):
            assert error(out, expected) < 1e-4  # NaN where it belongs, nowhere else
        one = torch.ones_like(outs[2])
        dx, dweight, dbias = LINEAR_CROSS_ENTROPY.bwd.fake(outs[0], *given, *outs[1:], *ALL, *options)
        dloss = torch.ones_like(outs[0])
        backward_of(dx, dweight, dbias, dloss, *given, outs[1], one, *ALL, *options)
        assert bool(dx[0].isnan().all()) and bool(dx[1:].isfinite().all())


def test_fasttx_check_reads_values_on_any_device(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setenv("FASTTX_CHECK", "1")
    x, w = torch.randn(2, 3, device=device), torch.randn(5, 3, device=device)
    with pytest.raises(IndexError, match="Target 9 is out of bounds."):
        fwd(x, w, None, torch.tensor([1, 9], device=device), None, -100, 0.0, MEAN, "auto")


@pytest.mark.parametrize("kernels", ["triton", "cuda"])
def test_bitwise_deterministic(kernels: str, chunk: int, device: torch.device) -> None:
    given = make(1030, 7, 3, torch.bfloat16, device, True)
    runs = []
    for _ in range(2):
        outs = fwd(*given, -100, 0.1, MEAN, kernels)
        runs.append((*outs, *bwd(torch.ones_like(outs[0]), *given, *outs[1:], *ALL, -100, 0.1, MEAN, kernels)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_any_shape_and_options(device) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
    @hypothesis.given(
        n_rows=st.integers(1, 9), n_cols=st.integers(1, 600), in_features=st.integers(1, 40), weighted=st.booleans(),
        biased=st.booleans(), smoothing=st.sampled_from([0.0, 0.25]), reduction=st.sampled_from(sorted(REDUCTIONS)),
        dtype=st.sampled_from(list(DTYPES.values())),
    )  # fmt: skip
    def holds(n_rows, n_cols, in_features, weighted, biased, smoothing, reduction, dtype) -> None:
        x, weight, bias, target, class_weight = make(n_rows, n_cols, in_features, dtype, device, weighted)
        verify("triton", (x, weight, bias if biased else None, target, class_weight), smoothing, reduction)

    holds()


def test_gradient_of_the_reference() -> None:
    """The backward formula is the derivative of the forward one."""
    for smoothing in (0.0, 0.2):
        x, w, b, target, class_weight = make(5, 6, 3, torch.float32, torch.device("cpu"), True)
        leaves = [t.double().requires_grad_() for t in (x, w, b)]
        options = (-100, smoothing, MEAN)
        loss, lse, total = LINEAR_CROSS_ENTROPY.fwd.reference(*leaves, target, class_weight, *options)
        expected = torch.autograd.grad(loss, leaves)
        args = (torch.ones(()), x, w, b, target, class_weight, lse, total, *ALL, *options)
        for found, grad in zip(LINEAR_CROSS_ENTROPY.bwd.reference(*args), expected, strict=True):
            torch.testing.assert_close(found, grad)


def _bad_calls() -> dict[str, tuple[tuple, type[Exception], str]]:
    x, w, b, t = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5), torch.tensor([0, 1, 2])
    end = (None, -100, 0.0, 1)
    return {
        "float64": ((x.double(), w, b, t, *end), ValueError, "x: got .*; allowed is"),
        "3-d": ((x[None], w, b, t, *end), ValueError, "x: got .*; allowed is"),
        "features": ((x, w[:, :3], b, t, *end), ValueError, "weight: got .*; allowed is"),
        "no class": ((x, w[:0], b[:0], t, *end), ValueError, "weight: got .*; allowed is"),
        "weight dtype": ((x, w.half(), b, t, *end), ValueError, "weight: got .*; allowed is"),
        "bias": ((x, w, b[:4], t, *end), ValueError, "bias: got .*; allowed is"),
        "int32": ((x, w, b, t.int(), *end), ValueError, "target: got .*; allowed is"),
        "probabilities": ((x, w, b, torch.rand(3, 5), *end), ValueError, "target: got .*; allowed is"),
        "batch": ((x, w, b, t[:2], *end), ValueError, "batch_size"),
        "class weight": ((x, w, b, t, b[:4], -100, 0.0, 1), ValueError, "class_weight: got .*; allowed is"),
        "devices": ((x, w, b.to("meta"), t, *end), ValueError, "bias: got a tensor on meta"),
        "smoothing": ((x, w, b, t, None, -100, 1.5, 1), ValueError, "label_smoothing"),
        "reduction": ((x, w, b, t, None, -100, 0.0, 3), ValueError, "reduction"),
        "range": ((x, w, b, t + 3, *end), IndexError, "Target 5 is out of bounds"),
    }


@pytest.mark.parametrize("name", _bad_calls())
def test_wrong_input_is_named(name: str) -> None:
    args, kind, message = _bad_calls()[name]
    with pytest.raises(kind, match=message):
        LINEAR_CROSS_ENTROPY.fwd.check(*args)


def test_wrong_backward_is_named() -> None:
    x, w, t = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    one, lse, options = torch.ones(()), torch.ones(3), (-100, 0.0, 1)
    with pytest.raises(ValueError, match="dloss: got .*; allowed is"):
        bwd(torch.ones(3), x, w, None, t, None, lse, one, True, True, False, *options, "auto")
    with pytest.raises(ValueError, match="needs_dbias"):
        bwd(one, x, w, None, t, None, lse, one, *ALL, *options, "auto")


def test_cost() -> None:
    x, w, b, t = torch.empty(4, 8), torch.empty(100, 8), torch.empty(100), torch.empty(4, dtype=torch.int64)
    flop, moved = LINEAR_CROSS_ENTROPY.fwd.cost(x, w, b, t, None, -100, 0.0, MEAN)
    assert flop == 400 * (2 * 8 + 4) and moved == (32 + 800 + 100) * 4 + 16 * 4
    flop, _ = LINEAR_CROSS_ENTROPY.bwd.cost(torch.ones(()), x, w, b, t, None, t, t, True, False, True)
    assert flop == 400 * (4 * 8 + 4)
