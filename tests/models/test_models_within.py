"""Models within others: BERT under another family's configuration (DPR, and RAG around it), torch.nn's in SigLIP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import fasttx

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def dpr(cls: str) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, cls)(transformers.DPRConfig(vocab_size=50, **SIZES)).eval()


@pytest.mark.parametrize("cls", ["DPRQuestionEncoder", "DPRContextEncoder", "DPRReader"])
def test_the_bert_inside_dpr_is_patched(cls: str) -> None:
    """Its attention too, on real tokens only: the configuration's file has no attention that would say otherwise."""
    model = dpr(cls)
    ids = torch.randint(2, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    ids[1, 4:] = 0
    want = model(input_ids=ids, attention_mask=mask)[0]
    report = fasttx.patch(model, unpad=True)
    assert report.left_alone == []
    assert sum(row.after == "attention: fasttx" for row in report.replaced) == SIZES["num_hidden_layers"]
    got = model(input_ids=ids, attention_mask=mask)[0]
    real = mask.bool() if cls == "DPRReader" else ...
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-5)
    rows = fasttx.explain(model, {"input_ids": ids, "attention_mask": mask}).rows
    assert "real tokens only" in {row.choice for row, _ in rows if row.what == "padded batch"}
    if cls == "DPRQuestionEncoder":
        compiled = torch.compile(model, backend="eager", fullgraph=True)(input_ids=ids, attention_mask=mask)[0]
        torch.testing.assert_close(compiled, want, rtol=1e-4, atol=1e-5)
    fasttx.unpatch(model)


class Documents(transformers.RagRetriever):
    """Two documents for every question, from no index; writes the questions' embeddings down."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.embeddings = torch.randn(2, SIZES["hidden_size"], generator=generator)
        self.ids = torch.randint(5, 50, (2, 7), generator=generator)
        self.asked: list[torch.Tensor] = []

    def __call__(self, question_input_ids: Any, question_hidden_states: Any, **options: Any) -> dict[str, Any]:
        self.asked.append(torch.from_numpy(question_hidden_states))
        questions = len(question_hidden_states)
        ids = self.ids.repeat(questions, 1)
        found = {"context_input_ids": ids, "context_attention_mask": torch.ones_like(ids)}
        documents = {"retrieved_doc_embeds": self.embeddings, "doc_ids": torch.arange(2)}
        return found | {name: t.expand(questions, *t.shape) for name, t in documents.items()}


def test_the_question_encoder_inside_rag_is_patched() -> None:
    """By what it asks for documents with, and by their scores; the generator is no BERT, and is said to stay."""
    torch.manual_seed(0)
    layers = {f"{half}_{what}": n for half in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 32}
    generator = transformers.BartForConditionalGeneration(transformers.BartConfig(vocab_size=50, **layers, **heads))
    documents = Documents()
    model = transformers.RagModel(
        question_encoder=dpr("DPRQuestionEncoder"), generator=generator, retriever=documents, n_docs=2
    ).eval()
    ids = torch.randint(2, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    ids[1, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.tensor([[2, 9, 8]] * 3)}
    want = model(**inputs)
    report = fasttx.patch(model, unpad=True)
    attentions = [row for row in report.replaced if row.after == "attention: fasttx"]
    assert len(attentions) == SIZES["num_hidden_layers"]
    assert all(row.module.startswith("question_encoder.") for row in report.replaced)
    assert {row.module.split(".")[0] for row in report.left_alone} == {"generator"}
    got = model(**inputs)
    assert documents.asked[0].std() > 0.1
    torch.testing.assert_close(documents.asked[1], documents.asked[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.doc_scores, want.doc_scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-5)
    rows = fasttx.explain(model, inputs).rows
    assert "real tokens only" in {row.choice for row, _ in rows if row.what == "padded batch"}
    fasttx.unpatch(model)


def test_a_warning_says_that_the_layers_around_a_torch_module_stay() -> None:
    """SigLIP pools with a torch.nn.MultiheadAttention: that alone is replaced."""
    config = transformers.SiglipVisionConfig(image_size=16, patch_size=8, **SIZES)
    model = transformers.SiglipVisionModel(config)
    with pytest.warns(UserWarning, match="replaced only torch.nn's modules in SiglipVisionModel: the model: "):
        report = fasttx.patch(model)
    assert [row.after for row in report.replaced] == ["fasttx.nn.MultiheadAttention"]
    assert ["siglip_vision_model" in row.reason for row in report.left_alone] == [True]
