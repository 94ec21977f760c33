"""What verify and explain take as a batch, and that models built on fasttx.nn are compared with torch.nn's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from torch import Tensor, nn

import fasttx
import fasttx.nn as fasttx_nn
from fasttx.models.diagnostics.batch import longest
from fasttx.nn import transformer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "short", "one", "the", "batch", "is", "longer", "."]
TEXTS = ["a short one.", "the batch is longer. the batch is longer. the batch is longer.", "one"]


class Tagger(nn.Module):
    """A model of torch.nn's parts, or of fasttx.nn's, whose call takes tensors in order."""

    def __init__(self, parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = parts.TransformerEncoderLayer(32, 2, 64, dropout=0.3, batch_first=True)
        self.encoder = parts.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = parts.Linear(32, 5)

    def forward(self, x: Tensor, padding: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = self.head(self.encoder(x, src_key_padding_mask=padding))
        return (
            logits if labels is None else (nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)
        )


X = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1))
PADDING = torch.arange(7).expand(3, 7) >= torch.tensor([7, 5, 3])[:, None]
LABELS = torch.arange(21).view(3, 7) % 5
BATCHES: dict[str, tuple[Any, set[str]]] = {
    "tensor": (X, {"output"}),
    "tuple": ((X, PADDING, LABELS), {"output", "loss", "gradient"}),
    "tuple with None": ((X, None, LABELS), {"output", "loss", "gradient"}),
    "list of tensors": ([X, PADDING, LABELS], {"output", "loss", "gradient"}),
    "mapping": ({"x": X, "padding": PADDING}, {"output"}),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("built", [False, True], ids=["patched", "built on fasttx.nn"])
def test_plain_models(name: str, built: bool) -> None:
    batch, kinds = BATCHES[name]
    model = Tagger(fasttx_nn if built else nn)
    if not built:
        fasttx.patch(model)
    found = fasttx.verify(model, batch)
    assert found.ok and {row.kind for row in found.rows} == kinds, str(found)
    taken = fasttx.explain(model, batch)
    assert {"scaled_dot_product_attention", "dropout_add_layer_norm"} <= {d.what for d, _ in taken.rows}
    assert taken.backward == ("loss" in kinds)


def test_a_model_built_on_fasttx_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies are torch.nn's modules, which the fault does not reach."""
    model = Tagger(fasttx_nn)
    monkeypatch.setattr(transformer.TransformerEncoderLayer, "forward", lambda self, src, *_, **__: 1.01 * src)
    assert not fasttx.verify(model, X).ok
    assert type(model.encoder) is fasttx_nn.TransformerEncoder  # the model itself is as it was


class Fused(nn.Module):
    """Modules and a function that torch.nn lacks; each of them would drop by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = fasttx_nn.LinearGELU(32, 32, p=0.3)
        self.norm = fasttx_nn.DropoutAddLayerNorm(32, p=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return fasttx_nn.functional.gelu(self.norm(self.linear(x), x)).square().mean()


def test_modules_that_torch_lacks_run_as_its_operators_without_dropout() -> None:
    model = Fused()
    found = fasttx.verify(model, X)
    assert found.ok and {row.kind for row in found.rows} == {"loss", "gradient"}
    assert all(row.allowed < 1e-5 for row in found.rows), str(found)  # other masks would be allowed much more
    assert model.norm.p == model.linear.p == 0.3


def test_a_model_that_calls_our_functions_alone() -> None:
    class Calls(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return fasttx_nn.functional.gelu(super().forward(x))

    assert fasttx.verify(Calls(32, 4), X).ok
    with pytest.raises(
        ValueError,
        match="^model: got a Linear that is not patched and holds nothing of fasttx.nn; allowed is one that does or is",
    ):
        fasttx.verify(nn.Linear(32, 4), X)


# --------------------------------------------------------------------------------------------------------------- texts


def tokenizer() -> Any:
    return transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})


def encoder(cls: str = "BertForSequenceClassification") -> Any:
    model = zoo.tiny_model(zoo.BERT, cls)
    fasttx.patch(model)
    return model


def test_texts_with_a_tokenizer() -> None:
    model, given = encoder(), tokenizer()
    found = fasttx.verify(model, TEXTS, tokenizer=given)
    assert found.ok and [row.name for row in found.rows] == ["logits"]
    assert any(d.what == "padded batch" for d, _ in fasttx.explain(model, TEXTS, tokenizer=given).rows)
    assert fasttx.verify(model, [("a short one", "is longer"), ("one", "the batch")], tokenizer=given).ok


def test_what_carries_a_tokenizer_needs_none() -> None:
    """A pipeline holds its model; a SentenceTransformer is the module itself."""
    model = encoder()
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer(), device="cpu")
    assert fasttx.verify(pipeline, TEXTS).ok and fasttx.explain(pipeline, TEXTS).rows

    class Sentences(nn.Sequential):
        tokenizer = tokenizer()

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"sentence_embedding": self[0](**features).last_hidden_state[:, 0]}

    assert [row.name for row in fasttx.verify(Sentences(encoder("BertModel")), TEXTS).rows] == ["sentence_embedding"]


def test_texts_are_cut_to_the_positions_of_the_model() -> None:
    many = ["the batch is longer. " * 200]
    assert fasttx.verify(encoder(), many, tokenizer=tokenizer()).ok
    positions = zoo.tiny_config(zoo.BERT).max_position_embeddings
    assert longest(encoder(), 10**30) == positions
    roberta = transformers.RobertaConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=34,
    )
    assert longest(transformers.RobertaModel(roberta), 10**30) == 32 and longest(nn.Linear(2, 2), 7) == 7


@pytest.mark.parametrize("function", [fasttx.verify, fasttx.explain])
def test_errors_say_what_a_batch_is(function: Any) -> None:
    allowed = "allowed is a mapping of the model's arguments by name, .*; a tensor, .*; or a list of texts"
    for bad in (3, None, "a text", [], [{}], [1, 2], {1, 2}):
        with pytest.raises(TypeError, match=f"^batch: got {type(bad).__name__}; {allowed}"):
            function(encoder(), bad)
    with pytest.raises(ValueError, match="^tokenizer: got None, and BertForSequenceClassification brings none"):
        function(encoder(), TEXTS)
    with pytest.raises(ValueError, match="^tokenizer: got 3, and SimpleNamespace brings none"):
        function(SimpleNamespace(model=encoder()), TEXTS, tokenizer=3)
