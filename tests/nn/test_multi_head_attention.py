"""MultiheadAttention and multi_head_attention_forward against torch's: results, weights, gradients, errors, modes."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as torch_functional

import fasttx.nn as nn
import fasttx.nn.functional as F
from fasttx.ops.backends import BackendError, backend
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

E, H, L, S, N = 12, 3, 4, 5, 2
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning"),
]


def pair(device="cpu", dtype=torch.float32, embed=E, heads=H, **options):
    """torch's module and ours with the same values."""
    torch.manual_seed(7)
    torch_module = torch.nn.MultiheadAttention(embed, heads, device=device, dtype=dtype, **options)
    torch.manual_seed(7)
    fasttx_module = nn.MultiheadAttention(embed, heads, device=device, dtype=dtype, **options)
    with torch.no_grad():  # biases are initialised with zeros
        for a, b in zip(torch_module.parameters(), fasttx_module.parameters(), strict=True):
            assert torch.equal(a, b)
            b.copy_(a.add_(torch.randn_like(a) * 0.1))
    return torch_module, fasttx_module


def inputs(same, batched, batch_first, kdim=E, vdim=E, device="cpu", dtype=torch.float32):
    def made(length, width):
        shape = (length, width) if not batched else ((N, length, width) if batch_first else (length, N, width))
        return torch.randn(shape, device=device, dtype=dtype)

    query = made(L, E)
    if same == "all":
        return query, query, query
    key = made(S, kdim)
    return query, key, key if same == "key" and kdim == vdim else made(S, vdim)


def masks(padding, attn, keys, batched, device="cpu"):
    batch = N if batched else 1
    hidden = torch.rand(batch, keys, device=device) < 0.4
    hidden[:, 0] = False  # each row keeps a key
    kpm = {"": None, "bool": hidden, "float": torch.randn(batch, keys, device=device)}[padding]
    kpm = kpm[0] if kpm is not None and not batched else kpm
    shape = (batch * H, L, keys) if attn.endswith("3") else (L, keys)
    hidden = torch.rand(shape, device=device) < 0.4
    hidden[..., 0] = False
    mask = {"": None, "bool": hidden, "float": torch.randn(shape, device=device)}[attn.rstrip("23")]
    return {"key_padding_mask": kpm, "attn_mask": mask}


def gradients(module, tensors, arguments):
    """out, weights, and the gradients of the distinct inputs and the parameters."""
    leaves = {id(t): t.detach().clone().requires_grad_() for t in tensors}
    module.zero_grad()
    out, weights = module(*(leaves[id(t)] for t in tensors), **arguments)
    loss = (out * torch.linspace(-1, 2, out.numel(), device=out.device).view(out.shape)).sum()
    if weights is not None:
        loss = loss + (weights**2).sum()
    loss.backward()
    return [out, *([] if weights is None else [weights]), *(t.grad for t in (*leaves.values(), *module.parameters()))]


def same_as_torch(options, same, batched, padding, attn, wanted, name, device="cpu", training=True):
    torch_module, fasttx_module = pair(device, **options)
    sizes = options.get("kdim") or E, options.get("vdim") or E
    tensors = inputs(same, batched, options.get("batch_first", False), *sizes, device=device)
    keys = L if same == "all" else S
    arguments = {**masks(padding, attn, keys, batched, device), **wanted}
    expected = gradients(torch_module.train(training), tensors, arguments)
    with backend(name):
        found = gradients(fasttx_module.train(training), tensors, arguments)
    assert len(found) == len(expected)
    torch.testing.assert_close(found, expected)


def test_every_combination_is_as_in_torch():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=40, deadline=None)
    @hypothesis.given(
        st.fixed_dictionaries(
            {name: st.booleans() for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
        ),
        st.sampled_from([None, (7, 9), (E, 9), (7, 7)]),
        st.sampled_from(["all", "key", "none"]),
        st.booleans(),
        st.sampled_from(["", "bool", "float"]),
        st.sampled_from(["", "bool2", "bool3", "float2", "float3"]),
        st.fixed_dictionaries({"need_weights": st.booleans(), "average_attn_weights": st.booleans()}),
        st.sampled_from(["auto", "torch"]),
        st.booleans(),
    )
    def holds(options, sizes, same, batched, padding, attn, wanted, name, training):
        if sizes is not None:
            options = {**options, "kdim": sizes[0], "vdim": sizes[1]}
            same = "key" if same == "all" else same
        same_as_torch(options, same, batched, padding, attn, wanted, name, training=training)

    holds()


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("same, padding, attn, more", [
    ("all", "bool", "", {}),
    ("key", "", "bool3", {"add_bias_kv": True, "batch_first": True}),
    ("none", "bool", "bool2", {"add_zero_attn": True, "bias": False}),
])  # fmt: skip
def test_in_the_kernels(device, weights, same, padding, attn, more):
    LAUNCHES.clear()
    same_as_torch(more, same, True, padding, attn, {"need_weights": weights}, "triton", device)
    op = "softmax" if weights else "attention"
    assert {key for key in LAUNCHES} == {(f"{op}_fwd", "triton"), (f"{op}_bwd", "triton")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("name", ["auto", "triton"])
def test_against_float64(device, dtype, weights, name):
    torch_module, fasttx_module = pair(device, dtype, batch_first=True)
    tensors = inputs("all", True, True, device=device, dtype=dtype)
    arguments = {"need_weights": weights, **masks("bool", "", L, True, device)}
    same = gradients(torch_module, tensors, arguments)
    with backend(name):
        found = gradients(fasttx_module, tensors, arguments)
    double = tensors[0].double()
    reference = gradients(copy.deepcopy(torch_module).double(), (double,) * 3, arguments)
    for triple in zip(found, same, reference, strict=True):
        assert_as_accurate(*triple)


@pytest.mark.parametrize("padding", ["", "bool"])
@pytest.mark.parametrize("weights", [False, True])
def test_the_causal_hint(padding, weights):
    torch_module, fasttx_module = pair()
    tensors = inputs("all", True, False)
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    arguments = {**masks(padding, "", L, True), "attn_mask": causal, "is_causal": True, "need_weights": weights}
    for name in ("auto", "torch", "triton"):
        with backend(name):
            torch.testing.assert_close(
                gradients(fasttx_module, tensors, arguments), gradients(torch_module, tensors, arguments)
            )
    # only a hint: without padding and weights the mask itself is not looked at
    arguments["attn_mask"] = torch.zeros(L, L, dtype=torch.bool)
    torch.testing.assert_close(fasttx_module(*tensors, **arguments), torch_module(*tensors, **arguments))


@pytest.mark.parametrize("name", ["auto", "torch", "triton"])
@pytest.mark.parametrize("embed", [E, 4 * E])
def test_rows_without_a_key(device, name, embed):
    """Zeros before out_proj, and NaN where the weights are asked for: torch's, but for its operator for evaluation."""
    torch_module, fasttx_module = pair(device, embed=embed, heads=2, batch_first=True)
    x = torch.randn(N, L, embed, device=device)
    hidden = torch.zeros(N, L, dtype=torch.bool, device=device)
    hidden[1] = True
    for training, weights in itertools.product((True, False), (True, False)):
        fasttx_module.train(training)
        with backend(name), torch.no_grad():
            out, w = fasttx_module(x, x, x, hidden, need_weights=weights)
        expected, expected_w = torch_module(x, x, x, hidden, need_weights=weights)
        torch.testing.assert_close(out, expected.detach(), equal_nan=True)
        torch.testing.assert_close(w, None if expected_w is None else expected_w.detach(), equal_nan=True)
        assert bool(out[1].isnan().all()) == weights
    row = torch.zeros(L, L, dtype=torch.bool, device=device)
    row[2] = True
    with backend(name), torch.no_grad():
        for mask in (row, torch.zeros(L, L, device=device).masked_fill(row, -torch.inf)):
            out, _ = fasttx_module(x, x, x, attn_mask=mask, need_weights=False)
            torch.testing.assert_close(out[:, 2], fasttx_module.out_proj.bias.expand(N, -1))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("padding", ["", "bool", "hiding float", "float"])
@pytest.mark.parametrize("rows", [4, 700])
def test_evaluation(padding, rows, grad, monkeypatch):
    """Small calls run torch's operator for evaluation, where it is right; others never."""
    torch_module, fasttx_module = pair(embed=48, heads=2, batch_first=True)
    torch_module.train()
    fasttx_module.eval()
    x = torch.randn(1, rows, 48)
    mask = None if not padding else torch.rand(1, rows) < 0.3
    if mask is not None:
        mask[:, 0] = False
        if padding == "float":
            mask = torch.randn(1, rows)
        elif padding != "bool":
            mask = torch.zeros(1, rows).masked_fill(mask, -torch.inf)
    calls = []
    own = torch.nn.MultiheadAttention.forward
    monkeypatch.setattr(torch.nn.MultiheadAttention, "forward", lambda *a: calls.append(1) or own(*a))
    with torch.set_grad_enabled(grad):
        out, _ = fasttx_module(x, x, x, mask, need_weights=False)
        assert len(calls) == (rows == 4 and not grad and padding != "float")
        torch.testing.assert_close(out, own(torch_module, x, x, x, mask, False)[0])


WRONG = {
    "dims": lambda x: ((x, x[0], x), {}),
    "4d": lambda x: ((x[None],) * 3, {}),
    "width": lambda x: ((x[..., :6],) * 3, {}),
    "key and value": lambda x: ((x, x, x[:1]), {}),
    "integer padding": lambda x: ((x, x, x), {"key_padding_mask": torch.zeros(N, L, dtype=torch.int64)}),
    "integer mask": lambda x: ((x, x, x), {"attn_mask": torch.zeros(L, L, dtype=torch.int64)}),
    "padding shape": lambda x: ((x, x, x), {"key_padding_mask": torch.zeros(N, L + 1, dtype=torch.bool)}),
    "padding dims": lambda x: ((x, x, x), {"key_padding_mask": torch.zeros(L, dtype=torch.bool)}),
    "mask shape": lambda x: ((x, x, x), {"attn_mask": torch.zeros(L, L + 1, dtype=torch.bool)}),
    "mask heads": lambda x: ((x, x, x), {"attn_mask": torch.zeros(N, L, L, dtype=torch.bool)}),
    "causal alone": lambda x: ((x, x, x), {"is_causal": True, "need_weights": False}),
    "dtype": lambda x: ((x.double(),) * 3, {}),
    "half": lambda x: ((x.bfloat16(),) * 3, {"need_weights": False}),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_errors_of_torch(case, batch_first, training):
    torch_module, fasttx_module = (m.train(training) for m in pair(batch_first=batch_first))
    args, arguments = WRONG[case](inputs("all", True, batch_first)[0])
    with pytest.raises(Exception) as wanted:
        torch_module(*args, **arguments)
    with pytest.raises(type(wanted.value)) as found:
        fasttx_module(*args, **arguments)
    assert str(found.value) == str(wanted.value)


def test_masks_of_two_kinds_warn_once_as_torch_does():
    torch_module, fasttx_module = pair()
    x = inputs("all", True, False)[0]
    arguments = {**masks("bool", "float2", L, True), "need_weights": False}
    texts = []
    for module in (torch_module, fasttx_module):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            module(x, x, x, **arguments)
        texts.append([str(w.message) for w in seen])
    assert texts[0] == texts[1] and len(texts[0]) == 1


@pytest.mark.parametrize("weights", [False, True])
def test_dropout(device, weights):
    """Each row of V is a unit vector, so that the output shows which weights were dropped, and their scale."""
    _, fasttx_module = pair(device, embed=8, heads=1, dropout=0.5, batch_first=True)
    with torch.no_grad():
        fasttx_module.in_proj_bias.zero_()
        fasttx_module.out_proj.bias.zero_()
        for w in (*fasttx_module.in_proj_weight.split(8), fasttx_module.out_proj.weight):
            w.copy_(torch.eye(8))
    q, v = torch.zeros(1, 64, 8, device=device), torch.eye(8, device=device)[None]
    for name in ("auto", "triton"):
        with backend(name):
            out, w = fasttx_module(q, q[:, :8], v, need_weights=weights)
        assert set(out.unique().tolist()) == {0.0, 0.25}  # 1/8 over 1 - 1/2
        assert 0.3 < float((out > 0).float().mean()) < 0.7
        if weights:
            assert torch.equal(w, out)
        with backend(name):
            out, _ = fasttx_module.eval()(q, q[:, :8], v, need_weights=weights)
        torch.testing.assert_close(out, torch.full_like(out, 0.125))
        fasttx_module.train()


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("name", ["auto", "torch", "triton"])
def test_autocast(device, name, weights):
    torch_module, fasttx_module = pair(device, add_bias_kv=True)
    tensors = inputs("all", True, False, device=device)
    arguments = {"need_weights": weights, **masks("bool", "", L, True, device)}
    with torch.autocast(device.type, torch.bfloat16):
        same = torch_module(*tensors, **arguments)
        with backend(name):
            found = fasttx_module(*tensors, **arguments)
    reference = copy.deepcopy(torch_module).double()(*(t.double() for t in tensors), **arguments)
    for triple in zip(found, same, reference, strict=True):
        if triple[0] is not None:
            assert triple[0].dtype == triple[1].dtype
            assert_as_accurate(*triple)


TO_TORCH = {
    "float64": lambda m, x: m.double()(x.double(), x.double(), x.double())[0],
    "vmap": lambda m, x: torch.func.vmap(lambda y: m(y, y, y)[0])(x[None])[0],
    "grad": lambda m, x: torch.func.grad(lambda y: m(y, y, y)[0].sum())(x),
    "jvp": lambda m, x: torch.func.jvp(lambda y: m(y, y, y)[0], (x,), (x,))[1],
    "empty": lambda m, x: m(x[:, :0], x[:, :0], x[:, :0])[0],
}


@pytest.mark.parametrize("case", TO_TORCH)
def test_what_the_kernels_do_not_cover(case):
    torch_module, fasttx_module = pair()
    x = inputs("all", True, False)[0]
    torch.testing.assert_close(TO_TORCH[case](fasttx_module, x), TO_TORCH[case](torch_module, x))
    if case != "empty":
        with backend("triton"), pytest.raises(BackendError, match="^MultiheadAttention: backend 'triton'"):
            TO_TORCH[case](fasttx_module, x)


def test_nested_tensors_run_the_forward_of_torch():
    torch_module, fasttx_module = (m.eval().requires_grad_(False) for m in pair(embed=16, heads=2, batch_first=True))
    x = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(5, 16)])
    found, expected = (m(x, x, x, need_weights=False)[0].to_padded_tensor(0.0) for m in (fasttx_module, torch_module))
    torch.testing.assert_close(found, expected)
    with pytest.raises(AssertionError, match="NestedTensor outside of its fast path"):
        fasttx_module.train()(x, x, x)


def test_functional_is_as_in_torch():
    fasttx_fn, torch_fn = F.multi_head_attention_forward, torch_functional.multi_head_attention_forward
    assert list(inspect.signature(fasttx_fn).parameters) == list(inspect.signature(torch_fn).parameters)
    module = pair()[0]
    x, key, value = inputs("none", True, False)
    rest = (E, H, module.in_proj_weight, module.in_proj_bias, None, None, False, 0.0)
    rest = (*rest, module.out_proj.weight, module.out_proj.bias)
    static = {name: torch.randn(N * H, S, E // H) for name in ("static_k", "static_v")}
    for arguments in ({}, static, {"training": False, "need_weights": False}):
        found, expected = (f(x, key, value, *rest, **arguments) for f in (fasttx_fn, torch_fn))
        torch.testing.assert_close(found, expected)
    with backend("triton"):
        torch.testing.assert_close(fasttx_fn(x, key, value, *rest), torch_fn(x, key, value, *rest))
        with pytest.raises(BackendError, match="static_k"):
            fasttx_fn(x, key, value, *rest, **static)
    for f in (fasttx_fn, torch_fn):
        with pytest.raises(AssertionError, match="was expecting embedding dimension of 24, but got 12"):
            f(x, key, value, 24, *rest[1:])


def test_names_without_a_kernel_are_those_of_torch():
    assert nn.HuberLoss is torch.nn.HuberLoss and F.huber_loss is torch_functional.huber_loss
    assert nn.TransformerDecoderLayer is torch.nn.TransformerDecoderLayer


def test_states_copies_and_pickles():
    torch_module, fasttx_module = pair(add_bias_kv=True, kdim=7, vdim=9)
    assert list(fasttx_module.state_dict()) == list(torch_module.state_dict())
    tensors = inputs("none", True, False, 7, 9)
    expected = torch_module(*tensors)
    for m in (copy.deepcopy(fasttx_module), pickle.loads(pickle.dumps(fasttx_module))):
        assert type(m) is nn.MultiheadAttention
        torch.testing.assert_close(m(*tensors), expected)


@pytest.mark.slow
def test_traces_without_a_break():
    torch_module, fasttx_module = pair(batch_first=True)
    x = inputs("all", True, True)[0]
    arguments = {"need_weights": False, **masks("bool", "", L, True)}
    for module in (fasttx_module, fasttx_module.eval()):
        traced = torch.compile(module, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(traced(x, x, x, **arguments)[0], torch_module(x, x, x, **arguments)[0])
