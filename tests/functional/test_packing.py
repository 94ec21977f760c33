"""unpad and repad: gathers of rows, each the other's gradient."""

import gc
import weakref

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fasttx.functional import repad, unpad
from fasttx.functional._packing import layout_of, take_rows


def test_packed_rows_are_the_real_ones_in_order_and_come_back():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    masks = st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=0, max_size=4)

    @hypothesis.settings(deadline=None, max_examples=60)
    @hypothesis.given(
        masks, st.sampled_from([torch.bool, torch.int64, torch.int32]), st.sampled_from([(), (3,), (2, 3)])
    )
    def holds(rows, dtype, rest):
        mask = torch.tensor(rows, dtype=torch.bool).view(len(rows), 5)
        hidden = torch.randn(len(rows), 5, *rest)
        packed, indices, cu_seqlens, max_seqlen = unpad(hidden, mask.to(dtype))
        assert torch.equal(packed, hidden[mask])
        lengths = [sum(row) for row in rows]
        assert cu_seqlens.dtype == torch.int32
        assert cu_seqlens.tolist() == [sum(lengths[:i]) for i in range(len(rows) + 1)]
        assert max_seqlen == max(lengths, default=0)
        back = repad(packed, indices, len(rows), 5)
        assert torch.equal(back, torch.where(mask.view(*mask.shape, *(1,) * len(rest)), hidden, torch.zeros(())))

    holds()


def test_any_number_but_zero_is_a_real_token_wherever_hidden_lies_in_memory():
    hidden = torch.randn(3, 2, 4).transpose(0, 1)
    packed, indices, cu_seqlens, max_seqlen = unpad(hidden, torch.tensor([[1, 0, -1], [0, 7, 0]]))
    assert torch.equal(packed, torch.stack([hidden[0, 0], hidden[0, 2], hidden[1, 1]]))
    assert (indices.tolist(), cu_seqlens.tolist(), max_seqlen) == ([0, 2, 4], [0, 2, 3], 2)


def test_counts_may_be_given_or_made_from_lengths():
    real = torch.arange(6) < torch.tensor([6, 0, 3])[:, None]
    found, made = layout_of(real, [6, 0, 3], torch.tensor([6, 0, 3], dtype=torch.int32)), layout_of(real, (6, 0, 3))
    assert made.cu_seqlens.tolist() == [0, 6, 6, 9]
    for a, b in zip(found, made, strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_with_lengths_the_host_reads_nothing():
    """Of a GPU, for which "meta" stands: it has no values."""
    layout = layout_of(torch.ones(2, 3, dtype=torch.bool, device="meta"), [3, 1])
    assert layout.indices.shape == (4,) and layout.cu_seqlens.shape == (3,) and layout[2:] == (3, 4)


def test_gradients_of_both_orders():
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    hidden = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    _, indices, _, _ = unpad(hidden, mask)
    packed = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: unpad(x, mask)[0], hidden)
        assert check(lambda x: repad(x, indices, 2, 3), packed)


@pytest.mark.parametrize("function", ["unpad", "repad"])
def test_only_indices_are_saved(function):
    leaf = torch.randn(2, 3, requires_grad=True)
    x = leaf * 1.0
    alive = weakref.ref(x)
    out = unpad(x, torch.tensor([[1, 0, 1], [0, 1, 1]]))[0] if function == "unpad" else repad(x, torch.arange(2), 2, 3)
    del x
    gc.collect()
    assert alive() is None
    out.sum().backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_gradients_are_those_without_a_graph(backend):
    torch.compiler.reset()
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0]])
    indices = unpad(mask, mask)[1]
    factors = torch.arange(1.0, 10.0).view(3, 3, 1)

    def step(x, w):
        layout = layout_of(mask.bool(), [3, 2, 1])
        packed = take_rows((x @ w).flatten(0, 1), indices) * layout.max_seqlen
        return (repad(packed @ w, indices, 3, 3) * factors).sum()

    leaves = torch.randn(3, 3, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    want = torch.autograd.grad(step(*leaves), leaves)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend=backend)(*leaves), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_what_repad_gives_may_be_written_in_place():
    packed = torch.randn(3, 2, requires_grad=True)
    hidden = repad(packed, torch.tensor([0, 1, 3]), 2, 2)
    hidden.mul_(2).sum().backward()
    assert packed.grad.eq(2).all()


def test_sizes_may_be_symbols():
    packed, indices = torch.randn(4, 2), torch.tensor([0, 2, 4, 5])
    traced = make_fx(lambda x, i, like: repad(x, i, *like.shape), tracing_mode="symbolic")
    graph = traced(packed, indices, torch.empty(2, 3))
    assert torch.equal(graph(packed, indices, torch.empty(2, 4)), repad(packed, indices, 2, 4))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"hidden": [1.0]}, TypeError, "hidden: got a list"),
        ({"mask": None}, TypeError, "mask: got None; allowed is a Tensor$"),
        ({"hidden": torch.zeros(3)}, ValueError, r"hidden's shape: got \(3,\)"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"mask's shape: got \(2, 4\).*\(2, 3\)"),
        ({"mask": torch.ones(3, 2, dtype=torch.bool)}, ValueError, r"mask's shape: got \(3, 2\)"),
        ({"mask": torch.ones(2, 3)}, ValueError, "mask's dtype: got torch.float32"),
        ({"mask": torch.ones(2, 3, dtype=torch.cfloat)}, ValueError, "mask's dtype: got torch.complex64"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool, device="meta")}, ValueError, "mask's device: got meta"),
        (
            {name: torch.ones(2, 3, device="meta").bool() for name in ("hidden", "mask")},
            ValueError,
            "mask: got a meta tensor",
        ),
    ],
)
def test_unpad_names_the_wrong_argument(change, error, words):
    with pytest.raises(error, match=words):
        unpad(**({"hidden": torch.zeros(2, 3, 4), "mask": torch.ones(2, 3, dtype=torch.bool)} | change))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"packed": 1}, TypeError, "packed: got an int; allowed is a Tensor$"),
        ({"indices": [0]}, TypeError, "indices: got a list"),
        ({"batch": 1.0}, TypeError, "batch: got 1.0"),
        ({"seqlen": True}, TypeError, "seqlen: got True"),
        ({"seqlen": -1}, ValueError, "seqlen: got -1"),
        ({"packed": torch.zeros(())}, ValueError, r"row of packed, \(\)"),
        ({"packed": torch.zeros(()), "indices": torch.tensor(0)}, ValueError, r"row of packed, \(\)"),
        ({"indices": torch.arange(3)}, ValueError, r"shape \(3,\)"),
        ({"indices": torch.arange(4)[:, None]}, ValueError, r"shape \(4, 1\)"),
        ({"indices": torch.arange(4, dtype=torch.int32)}, ValueError, "torch.int32"),
        ({"indices": torch.arange(4, device="meta")}, ValueError, "indices' device: got meta"),
        ({"indices": torch.tensor([0, 1, 2, 6])}, ValueError, "indices: got 0 to 6; allowed is 0 to 5"),
        ({"indices": torch.tensor([0, -1, 2, 3])}, ValueError, "indices: got -1 to 3; allowed is 0 to 5"),
        ({"batch": 1}, ValueError, r"seqlen: got 3; allowed is room for the 4 rows of packed"),
    ],
)
def test_repad_names_the_wrong_argument(change, error, words):
    with pytest.raises(error, match=words):
        repad(**({"packed": torch.zeros(4, 2), "indices": torch.arange(4), "batch": 2, "seqlen": 3} | change))
