"""TransformerEncoderLayer and TransformerEncoder against torch's: results, gradients, errors, evaluation, hooks."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import pytest
import torch

import fasttx.nn as nn
from fasttx.nn import transformer
from fasttx.ops.backends import BackendError, backend
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

E, H, L, N = 16, 2, 6, 3
FEED = 24
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]


def pair(layers=0, device="cpu", encoder=None, embed=E, heads=H, **options):
    """torch's module and ours with the same initial values; `layers` of them in an encoder, 0 for one alone."""
    options = {"dropout": 0.0, "batch_first": True, **options}
    made = []
    for source in (torch.nn, nn):
        torch.manual_seed(5)
        module = source.TransformerEncoderLayer(embed, heads, FEED, device=device, **options)
        if layers:
            norm = source.LayerNorm(embed, device=device) if (encoder or {}).get("norm") else None
            rest = {k: v for k, v in (encoder or {}).items() if k != "norm"}
            module = source.TransformerEncoder(module, layers, norm, **rest)
        made.append(module)
    torch_module, fasttx_module = made
    torch.manual_seed(6)
    with torch.no_grad():  # biases and norms are initialised with zeros and ones
        for a, b in zip(torch_module.parameters(), fasttx_module.parameters(), strict=True):
            assert torch.equal(a, b)
            b.copy_(a.add_(torch.randn_like(a) * 0.1))
    return torch_module, fasttx_module


def masks(padding, attn, device="cpu", batch=N):
    lengths = torch.tensor([L, L - 2, 1], device=device)
    right = torch.arange(L, device=device) >= lengths[:, None]
    kpm = {
        "": None,
        "bool": right,
        "holes": right.roll(2, 1) & (torch.arange(L, device=device) > 0),
        "hiding": torch.zeros(N, L, device=device).masked_fill(right, -torch.inf),
        "float": torch.randn(N, L, device=device),
    }[padding]
    causal = torch.ones(L, L, dtype=torch.bool, device=device).triu(1)
    mask = {
        "": None,
        "bool": causal,
        "hiding": torch.zeros(L, L, device=device).masked_fill(causal, -torch.inf),
        "float": torch.randn(L, L, device=device),
        "heads": torch.randn(N * H, L, L, device=device),
    }[attn]
    return kpm, mask


def gradients(module, x, *args, **kwargs):
    x = x.detach().clone().requires_grad_()
    module.zero_grad()
    out = module(x, *args, **kwargs)
    (out * torch.linspace(-1, 2, out.numel(), device=out.device, dtype=out.dtype).view(out.shape)).sum().backward()
    return [out, x.grad, *(p.grad for p in module.parameters())]


def batch(batch_first=True, device="cpu", embed=E):
    return torch.randn((N, L, embed) if batch_first else (L, N, embed), device=device)


def test_every_combination_is_as_in_torch():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=15, deadline=None)
    @hypothesis.given(
        st.fixed_dictionaries({
            "norm_first": st.booleans(), "batch_first": st.booleans(), "bias": st.booleans(),
            "activation": st.sampled_from(["relu", "gelu", torch.tanh]),
            "layer_norm_eps": st.sampled_from([1e-5, 1e-2]),
        }),
        st.sampled_from(["", "bool", "holes", "hiding", "float"]),
        st.sampled_from(["", "bool", "hiding", "float", "heads"]),
        st.integers(0, 2),
        st.booleans(),
        st.sampled_from(["auto", "torch"]),
    )  # fmt: skip
    def holds(options, padding, attn, layers, training, name):
        torch_module, fasttx_module = (m.train(training) for m in pair(layers, encoder={"norm": True}, **options))
        x = batch(options["batch_first"])
        kpm, mask = masks(padding, attn)
        with backend(name):
            found = gradients(fasttx_module, x, mask, src_key_padding_mask=kpm)
        torch.testing.assert_close(found, gradients(torch_module, x, mask, src_key_padding_mask=kpm))
        unbatched = (None if mask is None or mask.dim() == 3 else mask), None if kpm is None else kpm[1]
        with backend(name):
            found = fasttx_module(x[1] if options["batch_first"] else x[:, 1], *unbatched)
        torch.testing.assert_close(found, torch_module(x[1] if options["batch_first"] else x[:, 1], *unbatched))

    holds()


def by_the_slow_path(module, *args, **kwargs):
    """torch's forward without its operator for evaluation, which is wrong for numbers and for rows without a key."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return module(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("name", ["auto", "torch"])
@pytest.mark.parametrize("padding", ["", "bool", "holes", "hiding", "float"])
@pytest.mark.parametrize("small", [True, False])
def test_evaluation_without_gradients(layers, name, padding, small, monkeypatch):
    if not small:
        for bound in ("_SMALL", "_SMALL_MASKED", "_SMALL_BATCH"):
            monkeypatch.setattr(transformer, bound, 0)
    torch_module, fasttx_module = (m.eval() for m in pair(layers))
    x = batch()
    for attn in ("", "bool", "hiding", "float"):
        kpm, mask = masks(padding, attn)
        arguments = {"src_key_padding_mask": kpm}
        with backend(name), torch.no_grad():
            found = fasttx_module(x, mask, **arguments)
            expected = by_the_slow_path(torch_module, x, mask, **arguments)
            if layers and padding == "bool" and not attn:  # there torch packs, and gives zeros at padding
                expected = expected.masked_fill(kpm[..., None], 0.0)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("layers", [0, 2])
def test_a_sequence_without_a_key_is_never_nan(layers, small, monkeypatch):
    if not small:
        for bound in ("_SMALL", "_SMALL_MASKED", "_SMALL_BATCH"):
            monkeypatch.setattr(transformer, bound, 0)
    torch_module, fasttx_module = (m.eval() for m in pair(layers))
    x = batch()
    kpm = masks("bool", "")[0]
    kpm[1] = True
    with torch.no_grad():
        found = fasttx_module(x, src_key_padding_mask=kpm)
        expected = by_the_slow_path(torch_module, x, src_key_padding_mask=kpm)
    torch.testing.assert_close(found, expected.masked_fill(kpm[..., None], 0.0) if layers else expected)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("layers", [0, 2])
def test_in_the_kernels(device, norm_first, layers):
    torch_module, fasttx_module = pair(layers, device, norm_first=norm_first)
    x = batch(device=device)
    kpm, _ = masks("bool", "", device)
    LAUNCHES.clear()
    with backend("triton"):
        found = gradients(fasttx_module, x, src_key_padding_mask=kpm)
    n = max(layers, 1)
    counts = {"attention": n, "dropout_add_layer_norm": 2 * n}
    assert LAUNCHES == {(f"{op}_{way}", "triton"): k for op, k in counts.items() for way in ("fwd", "bwd")}
    expected = gradients(torch_module, x, src_key_padding_mask=kpm)
    reference = gradients(copy.deepcopy(torch_module).double(), x.double(), src_key_padding_mask=kpm)
    for triple in zip(found, expected, reference, strict=True):
        assert_as_accurate(*triple)


def test_packed_in_the_kernels(device):
    """Evaluation with right padding: one launch a layer for real tokens alone, zeros at padding."""
    torch_module, fasttx_module = (m.eval() for m in pair(2, device, {"norm": True}, activation="gelu"))
    x = batch(device=device)
    kpm, _ = masks("bool", "", device)
    x[kpm] = float("nan")  # never read
    LAUNCHES.clear()
    with backend("triton"), torch.no_grad():
        found = fasttx_module(x, src_key_padding_mask=kpm)
    assert LAUNCHES == {("attention_fwd", "triton"): 2, ("dropout_add_layer_norm_fwd", "triton"): 5}
    with torch.no_grad():
        torch.testing.assert_close(found, torch_module(x.nan_to_num(), src_key_padding_mask=kpm))


@pytest.mark.parametrize("attn", ["bool", "hiding"])
@pytest.mark.parametrize("given", [None, False, True])
def test_the_causal_hint(attn, given, monkeypatch):
    """A causal mask is found out, and handed on as a hint; a mask that is none is not."""
    torch_module, fasttx_module = pair(2)
    x, mask = batch(), masks("", attn)[1]
    hints = []
    own = nn.TransformerEncoderLayer.forward
    monkeypatch.setattr(
        nn.TransformerEncoderLayer, "forward", lambda self, *a, **k: hints.append(k["is_causal"]) or own(self, *a, **k)
    )
    torch.testing.assert_close(fasttx_module(x, mask, is_causal=given), torch_module(x, mask, is_causal=given))
    assert hints == [given is not False] * 2
    hints.clear()
    other = mask.clone()
    other[2, 1] = mask[0, 1]
    torch.testing.assert_close(fasttx_module(x, other), torch_module(x, other))
    assert hints == [False] * 2


def test_dropout_is_applied_where_torch_applies_it():
    """With p = 1/2 each element is 0 or doubled: the two sums of a layer whose norms do nothing."""
    for norm_first in (False, True):
        _, fasttx_module = pair(dropout=0.5, norm_first=norm_first)
        for name in ("dropout", "dropout1", "dropout2"):
            for which in ("dropout", "dropout1", "dropout2"):
                getattr(fasttx_module, which).p = 0.5 if which == name else 0.0
            fasttx_module.self_attn.dropout = 0.0
            x = batch()
            runs = {fasttx_module(x).sum().item() for _ in range(4)}
            assert len(runs) == 4, name
            fasttx_module.eval()
            assert len({fasttx_module(x).sum().item() for _ in range(2)}) == 1
            fasttx_module.train()
        torch.manual_seed(0)
        found = fasttx_module(x)
        torch.manual_seed(0)  # a CPU without masks draws what torch draws
        expected = torch.nn.TransformerEncoderLayer.forward(fasttx_module, x)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("part", ["norm1", "norm2", "dropout1", "dropout2", "self_attn", "linear1"])
def test_hooks_of_every_part_run(part):
    for training in (True, False):
        _, fasttx_module = pair()
        fasttx_module.train(training)
        seen = []
        getattr(fasttx_module, part).register_forward_hook(lambda *args, seen=seen: seen.append(args))
        with torch.no_grad():
            fasttx_module(batch())
        assert len(seen) == 1


def test_replaced_parts_are_called():
    torch_module, fasttx_module = pair(1)
    for module in (torch_module, fasttx_module):
        layer = module.layers[0]
        layer.norm1, layer.dropout2 = torch.nn.Identity(), torch.nn.Hardtanh(-0.1, 0.1)
    x = batch()
    torch.testing.assert_close(fasttx_module(x), torch_module(x))


def test_a_subclass_with_a_block_of_its_own():
    class Doubled(nn.TransformerEncoderLayer):
        def _ff_block(self, x):
            return 2 * super()._ff_block(x)

    _, fasttx_module = pair()
    x, plain = batch(), copy.deepcopy(fasttx_module)
    fasttx_module.__class__ = Doubled
    plain.linear2.weight.data *= 2
    plain.linear2.bias.data *= 2
    torch.testing.assert_close(fasttx_module(x), plain(x))


WRONG = {
    "width": lambda x: ((x[..., :7],), {}),
    "dims": lambda x: ((x[None],), {}),
    "integer mask": lambda x: ((x, torch.zeros(L, L, dtype=torch.int64)), {}),
    "mask shape": lambda x: ((x, torch.zeros(L, L - 1, dtype=torch.bool)), {}),
    "padding shape": lambda x: ((x,), {"src_key_padding_mask": torch.zeros(N, L - 1, dtype=torch.bool)}),
    "causal alone": lambda x: ((x,), {"is_causal": True}),
    "float64": lambda x: ((x.double(),), {}),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("layers", [0, 1])
def test_errors_of_torch(case, layers):
    torch_module, fasttx_module = pair(layers)
    args, arguments = WRONG[case](batch())
    with pytest.raises(Exception) as wanted:
        torch_module(*args, **arguments)
    with pytest.raises(type(wanted.value)) as found:
        fasttx_module(*args, **arguments)
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize("layers", [0, 2])
def test_masks_of_two_kinds_warn_once_as_torch_does(layers):
    x = batch()
    kpm, mask = masks("bool", "float")
    texts = []
    for module in pair(layers):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            module(x, mask, src_key_padding_mask=kpm)
        texts.append([str(w.message) for w in seen])
    assert texts[0] == texts[1] and len(texts[0]) == 1


@pytest.mark.parametrize("layers", [0, 1])
def test_what_the_kernels_do_not_cover(layers):
    torch_module, fasttx_module = pair(layers)
    x = batch()
    for call in (
        lambda m: torch.func.vmap(m)(x[None])[0],
        lambda m: m.double()(x.double()),
    ):
        torch.testing.assert_close(call(fasttx_module), call(torch_module))
        with backend("triton"), pytest.raises(BackendError, match="backend 'triton' cannot run this call"):
            call(fasttx_module)


@pytest.mark.parametrize("name", ["TransformerEncoderLayer", "TransformerEncoder", "MultiheadAttention"])
def test_signatures_are_those_of_torch(name):
    fasttx_class, torch_class = getattr(nn, name), getattr(torch.nn, name)
    assert list(inspect.signature(fasttx_class).parameters) == list(inspect.signature(torch_class).parameters)
    for a, b in zip(
        *(inspect.signature(cls.forward).parameters.values() for cls in (fasttx_class, torch_class)), strict=True
    ):
        assert (a.name, a.default) == (b.name, b.default)


def test_states_copies_and_pickles():
    torch_module, fasttx_module = pair(2, encoder={"norm": True})
    assert list(fasttx_module.state_dict()) == list(torch_module.state_dict())
    x = batch()
    for m in (copy.deepcopy(fasttx_module), pickle.loads(pickle.dumps(fasttx_module))):
        assert type(m.layers[1].self_attn) is nn.MultiheadAttention and type(m.layers[1].norm2) is nn.LayerNorm
        torch.testing.assert_close(m(x), torch_module(x))


@pytest.mark.slow
def test_traces_without_a_break():
    torch_module, fasttx_module = pair(1)
    x, (kpm, mask) = batch(), masks("bool", "bool")
    traced = torch.compile(fasttx_module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x, mask, kpm), torch_module(x, mask, kpm))
