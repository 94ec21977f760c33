"""Cross-entropy kernels and composition against float64 and against torch's own function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from fasttx.cli.check import DTYPES
from fasttx.ops.checks import MEAN, NONE, SUM
from fasttx.ops.cross_entropy import composed as cross_entropy_composed
from fasttx.ops.cross_entropy.op import CROSS_ENTROPY
from fasttx.ops.dispatch import resolve
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate, error

fwd = torch.ops.fasttx.cross_entropy_fwd.default
bwd = torch.ops.fasttx.cross_entropy_bwd.default

WRITTEN = ["triton", "cuda"]
REDUCTIONS = {NONE: "none", MEAN: "mean", SUM: "sum"}

SHAPES = [
    (3, 1),  # one class
    (2050, 2),  # narrow: two classes, more rows than the 1024 of a program
    (5, 7),  # narrow: odd, masked columns
    (130, 16),  # CUDA C++: the longest row of one thread, rows beyond the 128 of a block
    (17, 255),  # narrow: the longest row, rows beyond the 4 of a program
    (2, 256),  # wide: the shortest row, exactly one tile
    (5, 1024),  # CUDA C++: the longest row of a warp, rows beyond the 4 of a block
    (3, 1031),  # wide: a prime, every alignment of a row start but the first
    (2, 4096),  # wide: exactly one tile of 4096
    (2, 4119),  # wide: two tiles, the second nearly empty
    (2, 16411),  # wide: two programs a row in backward
]
IDS = [f"{n}x{c}" for n, c in SHAPES]


@pytest.fixture(params=["triton", "cuda", "torch", "torch in chunks"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The composition twice: from torch's pair of kernels, as for every size below, and as for larger ones."""
    if request.param == "torch in chunks":
        monkeypatch.setattr(cross_entropy_composed, "CHUNK", 0)
    return request.param.split()[0]


@pytest.fixture(autouse=True)
def _runnable(request: pytest.FixtureRequest, device: torch.device) -> None:
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    name = parameters.get("written", parameters.get("backend"))
    if name in WRITTEN:
        x = torch.ones(1, 1, device=device)
        reason = CROSS_ENTROPY.reasons(x, x)[name]
        if reason is not None:
            pytest.skip(f"cross_entropy on {name}: {reason}")


def launchers(written: str):
    """(forward, backward) of a backend, below the operators and their checks."""
    impl = next(impl for impl in CROSS_ENTROPY.impls if impl.backend == written)
    return resolve(impl.fwd), resolve(impl.bwd)


def make(n_rows: int, n_cols: int, dtype: torch.dtype, probs: bool, weighted: bool, device: torch.device):
    logits = (torch.randn(n_rows, n_cols) * 3).to(device, dtype)
    if probs:
        target = torch.randn(n_rows, n_cols).softmax(1).to(device, dtype)
    else:
        target = torch.randint(n_cols, (n_rows,))
        target[0], target[-1] = n_cols - 1, 0
        target[n_rows // 2] = -100
        target = target.to(device)
    weight = (torch.rand(n_cols) + 0.25).to(device, dtype) if weighted else None
    return logits, target, weight


def by_torch(
    dloss: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, reduction: int, dtype
):
    """(loss, dlogits) of torch.nn.functional.cross_entropy, everything in `dtype`."""
    x = logits.to(dtype).detach().requires_grad_()
    target = target.to(dtype) if target.is_floating_point() else target
    w = None if weight is None else weight.to(dtype)
    loss = torch_functional.cross_entropy(x, target, w, reduction=REDUCTIONS[reduction], label_smoothing=smoothing)
    return loss.detach(), torch.autograd.grad(loss, x, dloss.to(dtype))[0]


def verify(
    backend: str, logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, reduction: int
) -> None:
    n_rows = logits.shape[0]
    dloss = torch.randn((n_rows,) if reduction == NONE else (), device=logits.device)
    LAUNCHES.clear()
    loss, lse, total = fwd(logits, target, weight, -100, smoothing, reduction, backend)
    dlogits = bwd(dloss, logits, target, weight, lse, total, -100, smoothing, reduction, backend)
    assert dict(LAUNCHES) == {("cross_entropy_fwd", backend): 1, ("cross_entropy_bwd", backend): 1}

    ref = CROSS_ENTROPY.fwd.reference(logits, target, weight, -100, smoothing, reduction)
    ref_dlogits = CROSS_ENTROPY.bwd.reference(dloss, logits, target, weight, ref[1], ref[2], -100, smoothing, reduction)
    single, _ = by_torch(dloss, logits, target, weight, smoothing, reduction, torch.float32)
    _, same = by_torch(dloss, logits, target, weight, smoothing, reduction, logits.dtype)
    assert_as_accurate(loss, single, ref[0], "loss")
    assert error(lse, ref[1]) < 1e-5
    assert error(total, ref[2]) <= 1e-6 * max(1.0, float(ref[2]))
    assert_as_accurate(dlogits, same, ref_dlogits, "dlogits", by="element")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_every_regime(shape: tuple[int, int], dtype: torch.dtype, backend: str, device: torch.device) -> None:
    logits, target, weight = make(*shape, dtype, False, False, device)
    verify(backend, logits, target, weight, 0.0, MEAN)


@pytest.mark.parametrize("probs", [False, True], ids=["index", "probs"])
@pytest.mark.parametrize("written", WRITTEN)
def test_a_row_of_262144_columns_and_some(written: str, probs: bool, device: torch.device) -> None:
    verify(written, *make(2, 262_147, torch.bfloat16, probs, False, device), 0.1 if probs else 0.0, SUM)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=REDUCTIONS.values())
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weight"])
@pytest.mark.parametrize("probs", [False, True], ids=["index", "probs"])
@pytest.mark.parametrize("shape", [(5, 9), (3, 1031)], ids=["narrow", "wide"])
def test_every_option(shape, probs, weighted, smoothing, reduction, backend, device) -> None:
    verify(backend, *make(*shape, torch.float32, probs, weighted, device), smoothing, reduction)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("probs", [False, True], ids=["index", "probs"])
def test_half_precision_with_all_options(probs: bool, written: str, device: torch.device) -> None:
    for n_cols in (9, 4119):
        verify(written, *make(3, n_cols, torch.bfloat16, probs, True, device), 0.1, NONE)


@pytest.mark.parametrize("written", WRITTEN)
def test_target_and_weight_of_other_dtypes(written: str, device: torch.device) -> None:
    """Float32 probabilities for bfloat16 logits: their row starts have another alignment."""
    logits, target, weight = make(3, 1031, torch.bfloat16, True, True, device)
    target, weight = target.float(), weight.float()
    loss, lse, total = fwd(logits, target, weight, -100, 0.1, NONE, written)
    ref = CROSS_ENTROPY.fwd.reference(logits, target, weight, -100, 0.1, NONE)
    assert error(loss, ref[0]) < 1e-4
    dloss = torch.ones(3, device=device)
    dlogits = bwd(dloss, logits, target, weight, lse, total, -100, 0.1, NONE, written)
    assert (
        error(dlogits, CROSS_ENTROPY.bwd.reference(dloss, logits, target, weight, lse, total, -100, 0.1, NONE)) < 8e-3
    )


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("n_cols", [9, 1031], ids=["narrow", "wide"])
@pytest.mark.parametrize("layout", ["padded rows", "misaligned", "transposed", "every other row"])
def test_strides(layout: str, n_cols: int, written: str, device: torch.device) -> None:
    logits, target, _ = make(4, n_cols, torch.bfloat16, False, False, device)
    if layout == "padded rows":
        wide = torch.full((4, n_cols + 9), float("nan"), dtype=logits.dtype, device=device)
        view = wide[:, :n_cols]
    elif layout == "misaligned":
        wide = torch.full((4, n_cols + 3), float("nan"), dtype=logits.dtype, device=device)
        view = wide[:, 3:]
    elif layout == "transposed":
        wide = torch.empty(n_cols, 4, dtype=logits.dtype, device=device)
        view = wide.t()
    else:
        wide = torch.full((8, n_cols), float("nan"), dtype=logits.dtype, device=device)
        view = wide[::2]
    view.copy_(logits)
    before = wide.clone()
    expected = fwd(logits, target, None, -100, 0.0, MEAN, written)
    got = fwd(view, target, None, -100, 0.0, MEAN, written)
    one = torch.ones((), device=device)
    dlogits = bwd(one, view, target, None, got[1], got[2], -100, 0.0, MEAN, written)
    # The order of the sums follows the alignment of the row, so the last bits may differ.
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=1e-6)
    plain = bwd(one, logits, target, None, expected[1], expected[2], -100, 0.0, MEAN, written)
    torch.testing.assert_close(dlogits, plain)
    assert torch.equal(wide.nan_to_num(7.0), before.nan_to_num(7.0)), "the caller's tensor was written"


@pytest.mark.parametrize("written", WRITTEN)
def test_what_goes_with_the_logits_may_be_strided_too(written: str, device: torch.device) -> None:
    logits, weight = torch.randn(4, 37, device=device), torch.rand(74, device=device)[::2]
    labels, probs = torch.randint(37, (8,), device=device)[::2], torch.randn(37, 4, device=device).softmax(0).t()
    dloss = torch.tensor(2.0, device=device).expand(4)
    for target in (labels, probs):
        options = (-100, 0.1, NONE)
        loss, lse, total = fwd(logits, target, weight, *options, written)
        assert error(loss, CROSS_ENTROPY.fwd.reference(logits, target, weight, *options)[0]) < 1e-5
        arguments = (dloss, logits, target, weight, torch.stack((lse, loss), 1)[:, 0], total, *options)
        assert error(bwd(*arguments, written), CROSS_ENTROPY.bwd.reference(*arguments)) < 1e-5


def test_gradient_keeps_the_padding_of_rows(device: torch.device) -> None:
    """A decoder that pads its 30,522 columns to 30,528 gets a gradient with the same alignment."""
    logits = torch.randn(2, 304, device=device)[:, :300]
    dlogits = CROSS_ENTROPY.bwd.fake(torch.ones((), device=device), logits)
    assert dlogits.shape == (2, 300) and dlogits.stride() == (304, 1)
    far = torch.randn(2, 3000, device=device)[:, :300]
    assert CROSS_ENTROPY.bwd.fake(torch.ones((), device=device), far).stride() == (300, 1)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("n_cols", [5, 1031], ids=["narrow", "wide"])
@pytest.mark.parametrize("probs", [False, True], ids=["index", "probs"])
def test_writes_stay_inside(probs: bool, n_cols: int, written: str, device: torch.device) -> None:
    """Outputs start as NaN between guards; every element is written, no guard is."""
    cross_entropy_fwd, cross_entropy_bwd = launchers(written)
    n_rows, guard = 3, 64
    logits, target, _ = make(n_rows, n_cols, torch.float32, probs, False, device)

    def guarded(n: int) -> tuple[Tensor, Tensor]:
        whole = torch.full((n + 2 * guard,), float("nan"), device=device)
        whole[:guard], whole[-guard:] = 77.0, 77.0
        return whole, whole[guard:-guard]

    wholes = []
    for reduction in REDUCTIONS:
        outs = [guarded(n_rows if reduction == NONE else 1), guarded(n_rows), guarded(1), guarded(n_rows * n_cols)]
        loss, lse, total, dlogits = (o[1] for o in outs)
        options = (-100, 0.1, reduction)
        cross_entropy_fwd(loss if reduction == NONE else loss[0], lse, total[0], logits, target, None, *options)
        dloss = torch.ones((n_rows,) if reduction == NONE else (), device=device)
        cross_entropy_bwd(dlogits.view(n_rows, n_cols), dloss, logits, target, None, lse, total[0], *options)
        wholes += [o[0] for o in outs]
    for whole in wholes:
        assert bool((whole[:guard] == 77.0).all()) and bool((whole[-guard:] == 77.0).all())
        assert not bool(whole.isnan().any())


@pytest.mark.parametrize("n_cols", [5, 300], ids=["narrow", "wide"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_ignored(smoothing: float, n_cols: int, backend: str, device: torch.device) -> None:
    """As torch: the mean is NaN, the sum 0, the gradient 0 either way. Ignored rows are not read."""
    logits = torch.full((3, n_cols), float("nan"), device=device)
    target = torch.full((3,), 2, device=device)
    for reduction, expected in ((MEAN, float("nan")), (SUM, 0.0)):
        loss, lse, total = fwd(logits, target, None, 2, smoothing, reduction, backend)
        assert error(loss, torch.tensor(expected)) == 0.0
        dlogits = bwd(torch.ones((), device=device), logits, target, None, lse, total, 2, smoothing, reduction, backend)
        assert torch.equal(dlogits, torch.zeros_like(dlogits))


@pytest.mark.parametrize("n_cols", [5, 300], ids=["narrow", "wide"])
def test_weight_zero_of_all_targets_is_nan_as_in_torch(n_cols: int, backend: str, device: torch.device) -> None:
    logits, target, _ = make(3, n_cols, torch.float32, False, False, device)
    weight = torch.zeros(n_cols, device=device)
    loss, lse, total = fwd(logits, target, weight, -100, 0.0, MEAN, backend)
    dlogits = bwd(torch.ones((), device=device), logits, target, weight, lse, total, -100, 0.0, MEAN, backend)
    x = logits.clone().requires_grad_()
    expected = torch_functional.cross_entropy(x, target, weight)
    expected.backward()
    assert bool(loss.isnan()) and bool(expected.isnan())
    kept = target != -100
    assert torch.equal(dlogits[kept].isnan(), x.grad[kept].isnan()) and bool((dlogits[~kept] == 0.0).all())


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("n_cols", [5, 1031], ids=["narrow", "wide"])
@pytest.mark.parametrize("bad", [-1, 5_000_000_000], ids=["negative", "beyond int32"])
def test_index_out_of_range_is_an_error_or_nan(
    bad: int, n_cols: int, written: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU torch's error; a kernel that is not stopped gives NaN for that row and reads nothing outside."""
    cross_entropy_fwd, cross_entropy_bwd = launchers(written)
    logits, target, weight = make(3, n_cols, torch.float32, False, True, device)
    target[0] = bad
    if device.type == "cpu":
        with pytest.raises(IndexError, match=f"Target {bad} is out of bounds."):
            fwd(logits, target, weight, -100, 0.0, MEAN, written)
        one = torch.ones(())
        for reduction, dloss in ((NONE, torch.ones(3)), (MEAN, one)):  # torch's own kernel would write outside
            with pytest.raises(IndexError, match=f"Target {bad} is out of bounds."):
                bwd(dloss, logits, target, weight, torch.ones(3), one, -100, 0.0, reduction, "torch")
    monkeypatch.setattr(cross_entropy_composed, "CHUNK", 0)  # the composition of every other device
    for options in ((-100, 0.0, NONE), (-100, 0.1, MEAN)):
        outs = CROSS_ENTROPY.fwd.fake(logits, target, weight, *options)
        cross_entropy_fwd(*outs, logits, target, weight, *options)
        ref = CROSS_ENTROPY.fwd.reference(logits, target, weight, *options)
        assert error(outs[0], ref[0]) < 1e-4  # NaN where it belongs, nowhere else
        dlogits = torch.empty_like(logits)
        dloss = torch.ones_like(outs[0])
        cross_entropy_bwd(dlogits, dloss, logits, target, weight, outs[1], torch.ones_like(outs[2]), *options)
        assert bool(dlogits[0].isnan().all()) and bool(dlogits[1:].isfinite().all())
        composed = CROSS_ENTROPY.bwd.torch(dloss, logits, target, weight, outs[1], torch.ones_like(outs[2]), *options)
        assert bool(composed[0].isnan().any()) and bool(composed[1:].isfinite().all())


def test_fasttx_check_reads_values_on_any_device(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setenv("FASTTX_CHECK", "1")
    with pytest.raises(IndexError, match="Target 9 is out of bounds."):
        fwd(torch.randn(2, 5, device=device), torch.tensor([1, 9], device=device), None, -100, 0.0, MEAN, "auto")


@pytest.mark.parametrize("n_cols", [6, 1031], ids=["narrow", "wide"])
def test_infinite_logits_as_in_torch(n_cols: int, backend: str, device: torch.device) -> None:
    x = torch.randn(6, n_cols, device=device)
    x[0, 1:] = float("-inf")  # all but the first, which may be the edge before the first boundary
    x[1, :-1] = float("-inf")
    x[2, 3] = float("-inf")
    x[3, :] = float("-inf")
    x[4, 2] = float("inf")
    x[5, 1] = float("nan")
    target = torch.tensor([0, n_cols - 1, 0, 0, 0, 0], device=device)
    for smoothing in (0.0, 0.1):
        loss, _, _ = fwd(x, target, None, -100, smoothing, NONE, backend)
        expected = torch_functional.cross_entropy(x, target, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected, equal_nan=True)


@pytest.mark.parametrize("n_cols", [200, 4119], ids=["narrow", "wide"])
def test_large_offset_keeps_its_precision(n_cols: int, backend: str, device: torch.device) -> None:
    """Logits around 10,000: sums against x are kept relative to the maximum, so the loss loses nothing; lse is
    rounded.
    """
    logits, target, _ = make(3, n_cols, torch.float32, False, False, device)
    logits += 10_000.0
    loss, lse, _ = fwd(logits, target, None, -100, 0.3, NONE, backend)
    ref = CROSS_ENTROPY.fwd.reference(logits, target, None, -100, 0.3, NONE)
    single = torch_functional.cross_entropy(logits, target, reduction="none", label_smoothing=0.3)
    assert_as_accurate(loss, single, ref[0])
    assert error(lse, ref[1]) < 10_000 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("written", WRITTEN)
def test_bitwise_deterministic(written: str, device: torch.device) -> None:
    logits, target, weight = make(2060, 3, torch.float32, False, True, device)
    runs = [fwd(logits, target, weight, -100, 0.1, MEAN, written) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_empty_batch(backend: str, device: torch.device) -> None:
    x, t = torch.empty(0, 5, device=device), torch.empty(0, dtype=torch.int64, device=device)
    for target in (t, x):
        for reduction, name in REDUCTIONS.items():
            loss, lse, total = fwd(x, target, None, -100, 0.0, reduction, backend)
            expected = torch_functional.cross_entropy(x, target, reduction=name)
            assert loss.shape == expected.shape and error(loss, expected) == 0.0
            dlogits = bwd(torch.ones_like(loss), x, target, None, lse, total, -100, 0.0, reduction, backend)
            assert dlogits.shape == (0, 5)


@pytest.mark.parametrize("written", WRITTEN)
def test_any_shape_and_options(device, written) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
    @hypothesis.given(
        n_rows=st.integers(1, 9), n_cols=st.integers(1, 600), probs=st.booleans(), weighted=st.booleans(),
        smoothing=st.sampled_from([0.0, 0.25]), reduction=st.sampled_from(sorted(REDUCTIONS)),
        dtype=st.sampled_from(list(DTYPES.values())), ignored=st.integers(-3, 599),
    )  # fmt: skip
    def holds(n_rows, n_cols, probs, weighted, smoothing, reduction, dtype, ignored) -> None:
        logits, target, weight = make(n_rows, n_cols, dtype, probs, weighted, device)
        ignored = -100 if probs else ignored
        if not probs:
            target = torch.where(target < 0, 0, target)
        args = (logits, target, weight, ignored, smoothing, reduction)
        loss, lse, total = fwd(*args, written)
        ref = CROSS_ENTROPY.fwd.reference(*args)
        assert error(loss, ref[0]) <= 1e-5 * max(1.0, float(ref[0].nan_to_num(1.0).abs().max()))
        dloss = torch.ones_like(loss)
        dlogits = bwd(dloss, *args[:3], lse, total, *args[3:], written)
        ref_d = CROSS_ENTROPY.bwd.reference(dloss, *args[:3], ref[1], ref[2], *args[3:])
        eps = torch.finfo(dtype).eps
        assert error(dlogits, ref_d) <= max(2e-6, eps) * max(1.0, float(ref_d.abs().max()))

    holds()


def test_opcheck(backend: str, device: torch.device) -> None:
    for probs, reduction in ((False, MEAN), (True, NONE)):
        logits, target, weight = make(3, 7, torch.float32, probs, True, device)
        args = (logits, target, weight, -100, 0.1, reduction)
        torch.library.opcheck(fwd, (*args, backend))
        loss, lse, total = fwd(*args, backend)
        torch.library.opcheck(bwd, (torch.ones_like(loss), *args[:3], lse, total, *args[3:], backend))
