"""embedding_layer_norm and EmbeddingLayerNorm: what torch's functions give one after the other."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as torch_functional
from ops.test_embedding_layer_norm import factor_of, state_on
from torch.utils.checkpoint import checkpoint

import fasttx.nn as nn
import fasttx.nn.functional as F
from fasttx.functional import _embedding_layer_norm
from fasttx.ops.backends import BackendError, backend
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

each_backend = pytest.mark.parametrize("name", ["triton", "torch"])
every_backend = pytest.mark.parametrize("name", ["triton", "torch", "auto"])
FWD, BWD = "embedding_layer_norm_fwd", "embedding_layer_norm_bwd"
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor


def ids_of(device, shape=(3, 5)):
    """Word ids, and positions and types by the way they broadcast."""
    words = torch.randint(0, 13, shape, device=device)
    words[0, :2] = 1  # the padding
    position = {
        "each": torch.randint(0, 9, shape, device=device), "counted": None,
        "sequence": torch.arange(2, 2 + shape[1], device=device)[None],
        "column": torch.arange(shape[0], device=device)[:, None],
    }  # fmt: skip
    types = {"each": torch.randint(0, 2, shape, device=device), "zero": None}
    return words, position, types


def tables_of(device, dtype=torch.float32, types=2, n_cols=33):
    tables = [torch.randn(rows, n_cols, device=device).to(dtype) for rows in (13, 9, types)]
    return [*tables, *(torch.randn(n_cols, device=device).to(dtype) for _ in range(2))]


def fasttx_fn(words, positions, types, tensors, **options):
    word, position, token_type, weight, bias = tensors
    return F.embedding_layer_norm(
        words, word, weight, bias, position_embeddings=position, position_ids=positions,
        token_type_embeddings=token_type, token_type_ids=types, **options,
    )  # fmt: skip


def torch_fn(words, positions, types, tensors, factor=None, paddings=(None, None, None), eps=1e-5):
    word, position, token_type, weight, bias = tensors
    positions = torch.arange(words.shape[-1], device=words.device) if positions is None else positions
    types = torch.zeros_like(words) if types is None else types
    z = torch_functional.embedding(words, word, paddings[0]) + torch_functional.embedding(
        types, token_type, paddings[2]
    )
    z = z + torch_functional.embedding(positions, position, paddings[1])
    out = torch_functional.layer_norm(z, z.shape[-1:], weight, bias, eps)
    return out if factor is None else out * factor.view(out.shape).to(out.dtype)


def gradients(function, tensors):
    """out and the gradients of what is given."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(leaves)
    out.backward(torch.linspace(-1, 2, out.numel(), device=out.device).view(out.shape).to(out.dtype))
    return out.detach(), *(t.grad for t in leaves)


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which, kind, types, p", [
    ("each", "each", 2, 0.0), ("sequence", "zero", 2, 0.25), ("counted", "each", 1, 0.25), ("column", "each", 3, 0.0),
])  # fmt: skip
def test_gradients_against_float64(device, name, dtype, which, kind, types, p):
    words, positions, kinds = ids_of(device)
    ids, tensors = (words, positions[which], kinds[kind]), tables_of(device, dtype, types)
    if types == 1:
        ids = (*ids[:2], None)
    paddings, state = (1, 2, 1 if types > 1 else None), state_on(device) if p else None
    names = ("padding_idx", "position_padding_idx", "token_type_padding_idx")
    options = {"dropout_p": p, "rng_state": state, **dict(zip(names, paddings))}
    LAUNCHES.clear()
    with backend(name):
        found = gradients(lambda t: fasttx_fn(*ids, t, **options), tensors)
    runs = "torch" if name == "auto" else name
    assert LAUNCHES == ({(FWD, runs): 1, (BWD, runs): 1} if name != "auto" or p else {})
    factor = factor_of(runs, 15, 33, None, state, p)
    same = gradients(lambda t: torch_fn(*ids, t, factor, paddings), tensors)
    reference = gradients(lambda t: torch_fn(*ids, t, factor, paddings), [t.double() for t in tensors])
    for what, *triple in zip(("out", "word", "position", "token_type", "weight", "bias"), found, same, reference):
        assert_as_accurate(*triple, what)
    assert not found[1][1].any() and not found[2][2].any() and (types == 1 or not found[3][1].any())


@each_backend
@pytest.mark.parametrize("types", [2, 3])
def test_only_some_tables_require_a_gradient(device, name, types):
    words, positions, kinds = ids_of(device)
    tensors = tables_of(device, types=types)
    with backend(name):
        whole = gradients(lambda t: fasttx_fn(words, positions["each"], kinds["each"], t), tensors)[1:]
        for wanted in ((0,), (1,), (2,), (3,), (4,), (2, 4), (0, 3)):
            leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
            out = fasttx_fn(words, positions["each"], kinds["each"], leaves)
            out.backward(torch.linspace(-1, 2, out.numel(), device=device).view(out.shape))
            for i, (leaf, grad) in enumerate(zip(leaves, whole)):
                assert torch.equal(leaf.grad, grad) if i in wanted else leaf.grad is None


@every_backend
def test_the_words_alone(device, name):
    words = ids_of(device)[0]
    word = tables_of(device)[0]
    with backend(name):
        for ids in (words, words.int(), words[0, 0], words[:, :0], words.T):
            out = F.embedding_layer_norm(ids, word)
            torch.testing.assert_close(out, torch_functional.layer_norm(word[ids.long()], (33,)), atol=1e-5, rtol=1e-5)
        one = F.embedding_layer_norm(words[0, 0], word, position_embeddings=word, token_type_embeddings=word)
        torch.testing.assert_close(
            one, torch_functional.layer_norm(word[words[0, 0]] + 2 * word[0], (33,)), atol=1e-5, rtol=1e-5
        )


@every_backend
def test_dropout_is_seeded_and_off_in_evaluation(device, name):
    words, tensors = ids_of(device, (16, 5))[0], tables_of(device, n_cols=256)
    with backend(name):
        torch.manual_seed(7)
        out = fasttx_fn(words, None, None, tensors, dropout_p=0.25)
        other = fasttx_fn(words, None, None, tensors, dropout_p=0.25)
        torch.manual_seed(7)
        assert torch.equal(out, fasttx_fn(words, None, None, tensors, dropout_p=0.25)) and not torch.equal(out, other)
        plain = fasttx_fn(words, None, None, tensors, dropout_p=0.25, training=False, rng_state=state_on(device))
        torch.testing.assert_close(plain, torch_fn(words, None, None, tensors), atol=1e-5, rtol=1e-5)
    assert abs(float((out == 0).double().mean()) - 0.25) < 0.02


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_packed_and_padded_tokens_drop_the_same(device, name, dtype):
    if dtype == torch.float64 and name == "triton":
        pytest.skip("no kernel for float64")
    words, positions, _ = ids_of(device)
    tensors = tables_of(device, dtype)
    number = torch.arange(15, device=device).view(3, 5)
    real = torch.tensor([5, 2, 4], device=device)[:, None] > torch.arange(5, device=device)
    options = {"dropout_p": 0.4, "rng_state": state_on(device)}
    with backend(name):
        whole = fasttx_fn(words, positions["each"], None, tensors, row_index=number, **options)
        packed = fasttx_fn(words[real], positions["each"][real], None, tensors, row_index=number[real], **options)
    torch.testing.assert_close(packed, whole[real], atol=1e-6, rtol=1e-6)
    factor = factor_of("triton", 15, 33, number.flatten(), state_on(device), 0.4)
    expected = torch_fn(words, positions["each"], None, [t.double() for t in tensors], factor)
    torch.testing.assert_close(whole.double(), expected, atol=5e-6, rtol=1e-5)


@each_backend
def test_checkpoint_recomputes_the_same_dropout(device, name):
    words, tensors = ids_of(device)[0], tables_of(device)
    block = lambda *t: fasttx_fn(words, None, None, t, dropout_p=0.5)  # noqa: E731
    with backend(name):
        torch.manual_seed(3)
        expected = gradients(lambda t: block(*t), tensors)
        torch.manual_seed(3)
        found = gradients(lambda t: checkpoint(block, *t, use_reentrant=False), tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@each_backend
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_double_backward(device, name, p):
    words, positions, kinds = ids_of(device)
    ids, tensors = (words, positions["sequence"], kinds["each"]), tables_of(device)
    state = state_on(device) if p else None

    def second(function, tensors):
        leaves = [t.detach().requires_grad_() for t in tensors]
        first = torch.autograd.grad(function(leaves).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    with backend(name):
        found = second(lambda t: fasttx_fn(*ids, t, dropout_p=p, rng_state=state, padding_idx=1), tensors)
    factor = factor_of(name, 15, 33, None, state, p)
    expected = second(lambda t: torch_fn(*ids, t, factor, (1, None, None)), [t.double() for t in tensors])
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.double(), b, atol=1e-3 * float(b.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("name, types", [("triton", 2), ("torch", 3)])
def test_fullgraph(device, name, types):
    torch._dynamo.reset()
    words, positions, kinds = ids_of(device)
    tensors, state = tables_of(device, types=types), state_on(device)

    def function(words, positions, kinds, *t):
        return fasttx_fn(
            words, positions, kinds, t, dropout_p=0.5, rng_state=state, padding_idx=1, token_type_padding_idx=0
        )

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    LAUNCHES.clear()
    with backend(name):
        for n in (5, 4):
            ids = (words[:, :n], positions["sequence"][:, :n], kinds["each"][:, :n])
            found, expected = (gradients(lambda t, f=f, i=ids: f(*i, *t), tensors) for f in (compiled, function))
            assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert LAUNCHES == {(FWD, name): 4, (BWD, name): 4}


def test_autocast_of_other_devices_gives_float32(monkeypatch):
    """Every device but the CPU has layer norm on autocast's float32 list; played on tensors without data."""
    seen = []
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: device_type == "meta")
    monkeypatch.setattr(_embedding_layer_norm, "unsupported_reason", lambda *tensors: None)
    seen_by = lambda *args: seen.append((args[1].dtype, args[-2])) or (args[1][args[0]],)  # noqa: E731
    monkeypatch.setattr(_embedding_layer_norm, "_fwd", seen_by)
    for dtype in DTYPES:
        word = torch.ones(4, 3, dtype=dtype, device="meta")
        F.embedding_layer_norm(torch.zeros(2, dtype=torch.int64, device="meta"), word)
    assert seen == [(dtype, torch.float32) for dtype in DTYPES]


class Named(torch.Tensor):
    """A subclass that keeps its class, as torch's functions do by default."""


TO_TORCH = {
    "float64": lambda f, ids, w: f(ids, w.double()),
    "vmap": lambda f, ids, w: torch.func.vmap(lambda i: f(i, w))(ids),
    "jvp": lambda f, ids, w: torch.func.jvp(lambda v: f(ids, v), (w,), (w,)),
    "subclass": lambda f, ids, w: f(ids, w.as_subclass(Named)),
}


@pytest.mark.parametrize("case", TO_TORCH)
def test_what_the_operator_does_not_cover(device, case):
    words, word = ids_of(device)[0], tables_of(device)[0]
    call = TO_TORCH[case]
    with backend("auto"):
        found = call(F.embedding_layer_norm, words, word)
        expected = call(lambda i, w: torch_functional.layer_norm(torch_functional.embedding(i, w), (33,)), words, word)
        torch.testing.assert_close(found, expected)
    with backend("triton"), pytest.raises(BackendError, match="^embedding_layer_norm: backend 'triton'"):
        call(F.embedding_layer_norm, words, word)


@every_backend
def test_ids_outside_of_their_table(device, monkeypatch, name):
    monkeypatch.setenv("FASTTX_CHECK", "1")
    words, positions, kinds = ids_of(device)
    tensors = tables_of(device)
    for which, argument, rows in ((0, "(input|ids)", 13), (1, "position_ids", 9), (2, "(token_type_ids|type_ids)", 2)):
        ids = [words.clone(), positions["each"].clone(), kinds["each"].clone()]
        ids[which][1, 1] = rows
        with (
            backend(name),
            pytest.raises(ValueError, match=rf"^{argument}: got {rows}; allowed is rows 0 to {rows - 1} of the table$"),
        ):
            fasttx_fn(*ids, tensors)


IDS, W = torch.zeros(2, 4, dtype=torch.int64), torch.ones(5, 3)
BAD = {
    "input": ({"input": [1]}, TypeError, "^input: got a list; allowed is a Tensor$"),
    "floating": ({"input": W}, ValueError, "^input: .*float32"),
    "no table": ({"word_embeddings": None}, TypeError, "^word_embeddings: got None; allowed is a Tensor$"),
    "word dims": ({"word_embeddings": W[0]}, ValueError, r"^word_embeddings: .*\(3,\)"),
    "word dtype": ({"word_embeddings": IDS}, ValueError, "^word_embeddings: .*int64"),
    "no row": ({"position_embeddings": W[:0]}, ValueError, r"^position_embeddings: .*\(0, 3\)"),
    "columns": (
        {"token_type_embeddings": W[:, :2]},
        ValueError,
        r"^token_type_embeddings: got \(5, 2\); allowed is \(rows, 3\), as word_embeddings has$",
    ),
    "weight": ({"weight": W}, ValueError, r"^weight: .*\(5, 3\).*\(3,\)"),
    "bias": ({"bias": W[0].long()}, ValueError, "^bias: .*int64"),
    "device": ({"weight": W[0].to("meta")}, ValueError, "^weight: .*meta"),
    "ids alone": (
        {"position_ids": IDS},
        ValueError,
        "^position_ids: got a Tensor; allowed is None without position_embeddings$",
    ),
    "ids dtype": ({"token_type_embeddings": W, "token_type_ids": W}, ValueError, "^token_type_ids: .*float32"),
    "ids shape": (
        {"position_embeddings": W, "position_ids": IDS.T},
        ValueError,
        r"^position_ids: .*\(4, 2\).*\(2, 4\)",
    ),
    "too long": (
        {"position_embeddings": W[:3]},
        ValueError,
        "^input: got 4 columns; allowed is at most 3 columns, one for each row of position_embeddings$",
    ),
    "p": ({"dropout_p": 1.0}, ValueError, r"^dropout_p: got 1.0; allowed is a number in \[0, 1\)$"),
    "p type": ({"dropout_p": None}, TypeError, r"^dropout_p: got None; allowed is a number in \[0, 1\)$"),
    "eps": ({"eps": -1.0}, ValueError, "^eps: .*-1.0"),
    "row_index dtype": ({"row_index": W}, ValueError, "^row_index: .*float32"),
    "row_index shape": ({"row_index": IDS[0]}, ValueError, r"^row_index: .*\(4,\).*\(2, 4\)"),
    "rng_state": ({"rng_state": torch.zeros(3)}, ValueError, r"^rng_state: .*\(3,\)"),
    "padding": ({"padding_idx": 5}, ValueError, "^padding_idx: got 5; allowed is -5 to 4, the rows of its table$"),
    "padding of none": (
        {"position_padding_idx": 0},
        ValueError,
        "^position_padding_idx: got 0; allowed is None without its table$",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bad_input_is_named(case, dtype):
    wrong, error, message = BAD[case]
    with pytest.raises(error, match=message):
        F.embedding_layer_norm(**{"input": IDS, "word_embeddings": W.to(dtype), **wrong})


@pytest.mark.parametrize("options", [{}, {"max_position_embeddings": None}, {"type_vocab_size": None}], ids=str)
def test_module(device, options):
    module = nn.EmbeddingLayerNorm(13, 33, **{"max_position_embeddings": 9, **options}, padding_idx=-12, p=0.5).to(
        device
    )
    words, positions, kinds = ids_of(device)
    assert not module.word_embeddings.weight[1].any() and repr(module).startswith("EmbeddingLayerNorm(\n  p=0.5")
    keys = {"word_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"}
    keys |= {f"{n}.weight" for n in ("position_embeddings", "token_type_embeddings") if getattr(module, n) is not None}
    assert set(module.state_dict()) == keys
    given = [None if "type_vocab_size" in options else kinds["each"]]
    given.append(None if "max_position_embeddings" in options else positions["each"])
    tables = [module.position_embeddings, module.token_type_embeddings]
    zero = torch.zeros(9, 33, device=device)
    tensors = [
        module.word_embeddings.weight,
        *(zero if t is None else t.weight for t in tables),
        module.LayerNorm.weight,
    ]
    expected = torch_fn(words, given[1], given[0], [*tensors, module.LayerNorm.bias], eps=1e-12)
    for copied in (module.eval(), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        LAUNCHES.clear()
        with backend("triton"):
            torch.testing.assert_close(copied(words, *given), expected, atol=1e-5, rtol=1e-5)
        assert LAUNCHES == {(FWD, "triton"): 1}
    number = torch.arange(15, device=device).view(3, 5)
    with backend("triton"):
        torch.manual_seed(1)
        whole = module.train()(words, *given, number)
        torch.manual_seed(1)
        flipped = module(words.flip(0), *(None if t is None else t.flip(0) for t in given), number.flip(0))
    assert torch.equal(whole, flipped.flip(0)) and not torch.equal(whole, module.eval()(words, *given))
    whole.sum().backward()
    assert not module.word_embeddings.weight.grad[1].any() and module.word_embeddings.weight.grad.any()


def test_what_the_module_refuses():
    with pytest.raises(ValueError, match=r"^p: got 1.0; allowed is a number in \[0, 1\)$"):
        nn.EmbeddingLayerNorm(13, 33, p=1.0)
