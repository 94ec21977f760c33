"""Lengths that the caller of a patched model knows, and tracing, which need them to be packed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.test_padding_free import LENGTH, LENS, bare, batch, layer_inputs
from torch import Tensor

import fasttx
from fasttx.models import tracing
from fasttx.models.padding import decision as padding_free
from fasttx.models.padding import lengths as padding_lengths
from fasttx.models.padding.encoder import Encoder

ENCODERS = [
    (family, cls)
    for family, cls in zoo.TEXT_CLASSES
    if family.roles(Encoder) and zoo.passes_on(family) and family.heads.get(cls) != "causal_lm"
]
OTHERS = [(family, cls) for family, cls in zoo.TEXT_CLASSES if not (family.roles(Encoder) and zoo.passes_on(family))]


def close(got: Tensor, want: Tensor, at: Tensor) -> None:
    torch.testing.assert_close(got[at], want[at], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- eager


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("form", [list, tuple, torch.tensor])
def test_lengths_take_the_place_of_counting(form: Any, with_mask: bool) -> None:
    inputs = batch(*LENS)
    real = inputs["attention_mask"].bool()
    want = bare(unpad=None)(**inputs).last_hidden_state
    model = bare()
    seen = layer_inputs(model)
    if not with_mask:
        del inputs["attention_mask"]
    got = model(**inputs, seq_lens=form(LENS)).last_hidden_state
    assert seen == [(1, sum(LENS), 32)]
    close(got, want, real)
    assert got[~real].eq(0).all()


def test_the_mask_is_not_read_when_the_lengths_are_known() -> None:
    """On a GPU nobody waits for it; on a CPU it is compared, so that a wrong length does not pass unseen."""
    model, inputs = bare(), batch(*LENS)
    counted: list[Any] = []
    original = Tensor.sum

    def count(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        counted.append(args)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "sum", count)
        model(**inputs, seq_lens=list(LENS))
        assert not counted
        model(**inputs)
        assert counted


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([11, 4], "got 2 of them; allowed is one length for each of the 3 rows"),
        (torch.tensor([11, 4, 7, 7]), "got 4 of them"),
        (11, "got int"),
        (torch.tensor(11), "got int"),
        ("abc", "got str"),
        ([11, -1, 7], "got -1; allowed are ints from 0 to 11"),
        ([11, 12, 7], "got 12; allowed are ints from 0 to 11"),
        ([11, True, 7], "got True; allowed are ints"),
        (torch.tensor([True, True, True]), "got True; allowed are ints"),
        ([11, 4.0, 7], "got 4.0; allowed are ints"),
        (torch.tensor([11.0, 4.0, 7.0]), "got 11.0; allowed are ints"),
        ([[11], [4], [7]], r"got \[11\]; allowed are ints"),
        (torch.empty(3, device="meta"), "got a tensor on meta; allowed are ints or a tensor on the CPU"),
        ([11, 4, 8], "got other tokens than attention_mask marks; allowed are"),
    ],
)
def test_wrong_lengths(lengths: Any, message: str) -> None:
    model = bare()
    with pytest.raises(ValueError, match=f"^seq_lens: {message}"):
        model(**batch(*LENS), seq_lens=lengths)


@pytest.mark.parametrize("with_mask", [True, False])
def test_a_mask_on_another_device_is_not_read(with_mask: bool) -> None:
    """A GPU, for which "meta" stands: nothing waits for its values, and the mask that is made must lie there too."""
    model = bare().to("meta")
    inputs = {name: value.to("meta") for name, value in batch(*LENS).items()}
    if not with_mask:
        del inputs["attention_mask"]
    assert model(**inputs, seq_lens=list(LENS)).last_hidden_state.shape == (3, 11, 32)


@pytest.mark.parametrize("rows", ["left", "holes"])
def test_lengths_are_of_rows_padded_on_the_right(rows: str) -> None:
    inputs = batch(*LENS)
    if rows == "left":
        inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    else:
        inputs["attention_mask"][1] = torch.tensor([1, 0, 1, 1, 1] + [0] * 6)
    with pytest.raises(ValueError, match="padded on the right"):
        bare()(**inputs, seq_lens=list(LENS))


@pytest.mark.parametrize("unpad", ["auto", True])
def test_empty_rows(unpad: bool | str) -> None:
    """Poolers read the first position, which is padding there."""
    inputs = batch(11, 0, 7)
    model = bare(unpad=unpad)
    seen = layer_inputs(model)
    got = model(**inputs, seq_lens=[11, 0, 7]).last_hidden_state
    assert seen == [(1, 18, 32) if unpad is True else (3, 11, 32)]
    close(got, bare(unpad=None)(**inputs).last_hidden_state, inputs["attention_mask"].bool())


@pytest.mark.parametrize("unpad", ["auto", True])
def test_full_rows_need_no_mask(unpad: bool | str) -> None:
    ids = batch(11, 11)["input_ids"]
    model = bare(unpad=unpad)
    seen = layer_inputs(model)
    got = model(ids, seq_lens=[11, 11]).last_hidden_state
    assert seen == [(2, 11, 32)]
    close(got, bare(unpad=None)(ids).last_hidden_state, torch.ones(2, 11, dtype=torch.bool))


UNPACKED: dict[str, Any] = {
    "unpad=False": lambda: bare(unpad=False),
    "chunked": lambda: bare(chunk_size_feed_forward=11),
    "sdpa": lambda: _with("sdpa"),
    "eager": lambda: _with("eager"),
    "attention_only": lambda: _with("fasttx", unpad=None),
}


def _with(implementation: str, **options: Any) -> Any:
    model = bare(**options)
    model.set_attn_implementation(implementation)
    return model


@pytest.mark.parametrize("name", list(UNPACKED))
def test_models_that_run_padded_go_by_the_mask(name: str) -> None:
    """With a mask the lengths say nothing new; without one, ignoring them would have tokens attend to padding."""
    inputs = batch(*LENS)
    model = UNPACKED[name]()
    seen = layer_inputs(model)
    got = model(**inputs, seq_lens=list(LENS)).last_hidden_state
    assert seen == [(3, 11, 32)]
    close(got, bare(unpad=None)(**inputs).last_hidden_state, inputs["attention_mask"].bool())
    with pytest.raises(ValueError, match="^seq_lens: .*attention_mask"):
        model(inputs["input_ids"], seq_lens=list(LENS))


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_full_rows_under_another_attention(name: str) -> None:
    """Transformers drops a mask that hides nothing before the encoder sees it."""
    inputs = batch(11, 11)
    got = UNPACKED[name]()(**inputs, seq_lens=[11, 11]).last_hidden_state
    close(got, bare(unpad=None)(**inputs).last_hidden_state, inputs["attention_mask"].bool())


def test_a_mask_for_each_query_stands_beside_the_lengths() -> None:
    inputs = batch(*LENS)
    real = inputs["attention_mask"].bool()
    inputs["attention_mask"] = real[:, None, None, :].expand(3, 1, 11, 11)
    got = bare()(**inputs, seq_lens=list(LENS)).last_hidden_state
    close(got, bare(unpad=None)(**inputs).last_hidden_state, real)


@pytest.mark.parametrize("how", ["hidden_states", "left_alone"])
def test_padded_calls_make_the_mask_from_the_lengths(how: str) -> None:
    inputs = batch(*LENS)
    real = inputs["attention_mask"].bool()
    model = bare(unpad=True)
    if how == "left_alone":
        inner = model.encoder.layer[0].forward
        model.encoder.layer[0].forward = lambda hidden, mask=None, *_, **__: inner(hidden, mask)
    got = model(inputs["input_ids"], seq_lens=list(LENS), output_hidden_states=how == "hidden_states")
    close(got.last_hidden_state, bare(unpad=None)(**inputs).last_hidden_state, real)


def test_decoders_need_the_mask() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertLMHeadModel")
    inputs = batch(*LENS)
    want = model(**inputs).logits
    fasttx.patch(model)
    with pytest.raises(ValueError, match="^seq_lens: .*attention_mask"):
        model(inputs["input_ids"], seq_lens=list(LENS))
    close(model(**inputs, seq_lens=list(LENS)).logits, want, inputs["attention_mask"].bool())


def test_an_encoder_that_became_a_decoder_after_the_patch_needs_the_mask() -> None:
    model = bare()
    model.config.is_decoder = True
    with pytest.raises(ValueError, match="^seq_lens: .*attention_mask"):
        model.encoder(torch.randn(3, 11, 32), seq_lens=list(LENS))


@pytest.mark.parametrize(("family", "cls"), ENCODERS, ids=[cls for _, cls in ENCODERS])
def test_every_encoder_takes_them(family: Any, cls: str) -> None:
    """The loss too: no label or answer lies in padding, whether mask or lengths say where it is."""
    model, inputs = zoo.tiny_model(family, cls), zoo.inputs_for(family, cls)
    fasttx.patch(model)
    lengths = inputs["attention_mask"].sum(-1).view(-1).tolist()
    want = model(**inputs)
    seen = layer_inputs(model)
    mask = inputs.pop("attention_mask")
    got = model(**inputs, seq_lens=lengths)
    assert seen[0][:2] == (1, sum(lengths))
    if want.get("loss") is not None:
        torch.testing.assert_close(got.loss, want.loss)
    for name, value in zoo.predictions(got, mask).items():
        torch.testing.assert_close(value, zoo.predictions(want, mask)[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "cls"), OTHERS, ids=[cls for _, cls in OTHERS])
def test_others_refuse_them_where_nothing_else_says_what_is_padding(family: Any, cls: str) -> None:
    model, inputs = zoo.tiny_model(family, cls), zoo.inputs_for(family, cls)
    fasttx.patch(model)
    lengths = inputs["attention_mask"].sum(-1).view(-1).tolist()
    want = model(**inputs)
    assert torch.equal(model(**inputs, seq_lens=lengths)[0], want[0])
    mask = inputs.pop("attention_mask")
    with pytest.raises(
        ValueError, match="^seq_lens: got lengths without an attention_mask; allowed are lengths alone where"
    ):
        model(**inputs, seq_lens=lengths)
    full = [mask.shape[-1]] * len(lengths)
    assert torch.equal(model(**inputs, seq_lens=full)[0], model(**inputs)[0])
    if not zoo.passes_on(family):
        with pytest.raises(ValueError, match="cu_seq_lens_q: got a packed batch"):
            model(**inputs, cu_seq_lens_q=torch.tensor([0, 33]))


# ------------------------------------------------------------------------------------------------------------ graphs


@pytest.mark.parametrize("with_mask", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiled_with_lengths(with_mask: bool) -> None:
    """Packed in one graph, whatever the lengths of the next batch."""
    torch.compiler.reset()
    model, plain = bare(num_hidden_layers=1), bare(unpad=None, num_hidden_layers=1)
    compilations: list[int] = []

    def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
        compilations.append(len(examples))
        return torch._dynamo.lookup_backend("aot_eager")(graph, examples)

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    generator = torch.Generator().manual_seed(2)
    for _ in range(12):
        lengths = torch.randint(2, LENGTH + 1, (3,), generator=generator).tolist()
        inputs = batch(*lengths)
        want = plain(**inputs).last_hidden_state
        real = inputs["attention_mask"].bool()
        if not with_mask:
            del inputs["attention_mask"]
        close(compiled(**inputs, seq_lens=lengths).last_hidden_state, want, real)
    assert len(compilations) <= 3  # once for the first lengths, once for any


@pytest.mark.parametrize("lengths", [None, list(LENS), torch.tensor(LENS)], ids=["none", "list", "tensor"])
def test_what_a_compiled_graph_computes_on(lengths: Any) -> None:
    """Real tokens with lengths; without them, or with a tensor of them, the padded batch, and its mask is respected."""
    torch.compiler.reset()
    model, inputs = bare(num_hidden_layers=1), batch(*LENS)
    shapes: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
        products = [n for n in graph.graph.nodes if getattr(n.target, "__name__", "") in ("gelu", "linear")]
        shapes.extend(tuple(n.meta["example_value"].shape[:-1]) for n in products)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    more = {} if lengths is None else {"seq_lens": lengths}
    got = compiled(**inputs, **more).last_hidden_state
    close(got, bare(unpad=None, num_hidden_layers=1)(**inputs).last_hidden_state, inputs["attention_mask"].bool())
    assert set(shapes[:-1]) == ({(1, sum(LENS))} if isinstance(lengths, list) else {(3, 11)})  # the last is the pooler


@pytest.mark.slow
def test_compiled_gradients_with_lengths() -> None:
    torch.compiler.reset()
    model = zoo.tiny_model(zoo.BERT, "BertForTokenClassification")
    fasttx.patch(model)
    for lengths in ([11, 4, 7], [9, 11, 3]):
        again = batch(*lengths)
        again["labels"] = torch.where(again["attention_mask"] == 1, again["input_ids"] % 3, -100)
        model.zero_grad(set_to_none=True)
        model(**again).loss.backward()
        want = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        torch.compile(model, fullgraph=True, backend="aot_eager")(**again, seq_lens=lengths).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, want[name], rtol=1e-4, atol=1e-6)


def test_exported_graphs_respect_the_mask() -> None:
    model = bare(return_dict=False)
    one, other = batch(11, 4, 7), batch(5, 11, 9)
    program = torch.export.export(model, (), one, strict=False)
    close(program.module()(**other)[0], model(**other)[0], other["attention_mask"].bool())


def test_a_stream_that_is_captured_runs_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths are read once, at the capture: a replay would use them for another batch."""
    model, inputs = bare(), batch(*LENS)
    for module in (padding_free, padding_lengths, tracing):
        monkeypatch.setattr(module, "captured", lambda hidden: True)
    seen = layer_inputs(model)
    close(model(**inputs, seq_lens=list(LENS)).last_hidden_state, bare(unpad=None)(**inputs).last_hidden_state,
          inputs["attention_mask"].bool())  # fmt: skip
    model(**inputs)  # nor is the mask counted
    assert seen == [(3, 11, 32)] * 2
    with pytest.raises(ValueError, match="^seq_lens: .*capture of a CUDA graph"):
        model(inputs["input_ids"], seq_lens=list(LENS))


def test_only_the_stream_of_a_gpu_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tracing.captured(SimpleNamespace(is_cuda=True))
    assert not tracing.captured(torch.zeros(1))
