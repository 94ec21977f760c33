"""Training a patched model: checkpointing, torch.compile, Trainer, PEFT, sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo

import fasttx


def gradients(model: Any, inputs: dict[str, Any], seed: int = 3) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non_reentrant"])
def test_gradient_checkpointing_draws_the_same_dropout(use_reentrant: bool) -> None:
    model = zoo.tiny_model(
        zoo.BERT, "BertForMaskedLM", attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.1
    ).train()
    inputs = zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    fasttx.patch(model)
    want = gradients(model, inputs)
    other = gradients(model, inputs, seed=4)
    assert any(not torch.equal(want[name], other[name]) for name in want)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    got = gradients(model, inputs)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"backend": "torch", "deterministic": True}, marks=pytest.mark.slow)],
    ids=["auto", "asked"],
)
@pytest.mark.parametrize("cls", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_compile_fullgraph_with_padding(cls: str, options: dict[str, Any]) -> None:
    torch.compiler.reset()
    model = zoo.tiny_model(zoo.BERT, cls)
    inputs = zoo.inputs_for(zoo.BERT, cls)
    model(**inputs)  # settles config.problem_type
    fasttx.patch(model, **options)
    more = {"num_items_in_batch": torch.tensor(9)}
    want, want_grads = model(**inputs, **more), gradients(model, inputs | more)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = compiled(**inputs, **more)
    torch.testing.assert_close(got.loss, want.loss)
    real = inputs["attention_mask"].bool()
    if cls == "BertForMaskedLM":
        torch.testing.assert_close(got.logits[real], want.logits[real], rtol=1e-4, atol=1e-5)
    model.zero_grad(set_to_none=True)
    got.loss.backward()
    for name, parameter in model.named_parameters():
        if name in want_grads:
            torch.testing.assert_close(parameter.grad, want_grads[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compile_with_inductor_and_dropout() -> None:
    torch.compiler.reset()
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM", attention_probs_dropout_prob=0.2).train()
    inputs = zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    fasttx.patch(model)
    compiled = torch.compile(model, fullgraph=True)
    losses = [float(compiled(**inputs).loss) for _ in range(3)]
    assert len(set(losses)) == 3  # a new mask each time
    compiled(**inputs).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------------------------------------------------- Trainer


def train(tmp_path: Path, batch: int, accumulation: int, loss: str | None) -> list[float]:
    """Losses that Trainer logs over three optimiser steps on the same twelve sequences."""
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
    generator = torch.Generator().manual_seed(5)
    data = []
    for i in range(12):  # labels are spread very unevenly
        ids = torch.randint(2, zoo.VOCAB, (10,), generator=generator)
        labels = torch.where(torch.arange(10) < 1 + (i % 2) * 7, ids, -100)
        data.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones(10, dtype=torch.long)})
    if loss is not None:
        fasttx.patch(model, loss=loss)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        seed=11,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_logs_the_right_loss_with_gradient_accumulation(tmp_path: Path) -> None:
    whole = train(tmp_path, batch=4, accumulation=1, loss=None)
    assert len(whole) == 3
    assert train(tmp_path, batch=2, accumulation=2, loss="correct") == pytest.approx(whole, rel=1e-3)
    wrong = train(tmp_path, batch=2, accumulation=2, loss="hf")
    assert wrong == pytest.approx(train(tmp_path, batch=2, accumulation=2, loss=None), rel=1e-3)
    assert all(a > 1.5 * b for a, b in zip(wrong, whole))


# ---------------------------------------------------------------------------------------- models inside other libraries


@pytest.mark.parametrize("when", ["before", "after"])
def test_peft_lora(when: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = zoo.tiny_model(zoo.BERT, "BertForSequenceClassification")
    inputs = zoo.inputs_for(zoo.BERT, "BertForSequenceClassification")
    base_type, config = type(model), model.config
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], lora_dropout=0.0)
    if when == "before":
        fasttx.patch(model)
    wrapped = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    if when == "before":
        fasttx.unpatch(wrapped)
        assert type(model) is base_type and wrapped.base_model.model.config is config
    wrapped.eval()
    want, want_grads = wrapped(**inputs), gradients(wrapped, inputs)
    report = fasttx.patch(wrapped)
    assert len(report.replaced) == 11 and fasttx.is_patched(wrapped)
    got, got_grads = wrapped(**inputs), gradients(wrapped, inputs)
    torch.testing.assert_close(got.loss, want.loss)
    assert got_grads.keys() == want_grads.keys()
    for name in want_grads:
        torch.testing.assert_close(got_grads[name], want_grads[name], rtol=1e-4, atol=1e-6)
    wrapped.save_pretrained(tmp_path)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).loss, want.loss, rtol=1e-4, atol=1e-4)
    fasttx.unpatch(merged)
    assert type(merged) is base_type


def saved_encoder(tmp_path: Path, cls: str) -> str:
    """A tiny model with a tokenizer that knows a few words, as a directory."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the cat sat on a mat and dogs ran far away".split()]
    tokenizer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
    model = zoo.tiny_model(zoo.BERT, cls, pad_token_id=0, num_labels=1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


SENTENCES = ["the cat sat on the mat and the dogs ran far away", "a cat", "dogs ran on a mat"]


def test_sentence_transformers(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(saved_encoder(tmp_path, "BertModel"), device="cpu")
    want = model.encode(SENTENCES)
    report = fasttx.patch(model)
    assert len(report.replaced) == 12 and not report.left_alone
    got = model.encode(SENTENCES)
    assert got == pytest.approx(want, rel=1e-3, abs=1e-4)
    model.save(str(tmp_path / "saved"))
    fasttx.unpatch(model)
    assert library.SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(SENTENCES) == pytest.approx(
        want, rel=1e-3, abs=1e-4
    )


def test_cross_encoder(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = library.CrossEncoder(saved_encoder(tmp_path, "BertForSequenceClassification"), device="cpu")
    pairs = [(SENTENCES[0], other) for other in SENTENCES]
    want = model.predict(pairs)
    report = fasttx.patch(model)
    assert len(report.replaced) == 13
    assert model.predict(pairs) == pytest.approx(want, rel=1e-3, abs=1e-4)
    fasttx.unpatch(model)
    assert not fasttx.is_patched(model)


def test_pipeline(tmp_path: Path) -> None:
    path = saved_encoder(tmp_path, "BertForSequenceClassification")
    pipe = transformers.pipeline("text-classification", model=path, device="cpu")
    want = pipe(SENTENCES, function_to_apply="none")
    fasttx.patch(pipe)
    got = pipe(SENTENCES, function_to_apply="none")
    assert [row["score"] for row in got] == pytest.approx([row["score"] for row in want], rel=1e-3)
    again = transformers.pipeline("text-classification", model=pipe.model, tokenizer=pipe.tokenizer)
    assert again(SENTENCES, function_to_apply="none") == got


def test_accelerate_mixed_precision() -> None:
    """accelerate replaces forward on the instance; a patch before that still undoes cleanly afterwards."""
    accelerate = pytest.importorskip("accelerate")
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM", initializer_range=0.05)
    inputs = zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    want = model(**inputs).loss
    fasttx.patch(model)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # Trainer leaves its own behind
    prepared = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    loss = prepared(**inputs, num_items_in_batch=int((inputs["labels"] != -100).sum())).loss
    torch.testing.assert_close(loss, want, rtol=0.02, atol=0.02)
    fasttx.unpatch(model)
    torch.testing.assert_close(prepared(**inputs).loss, want, rtol=0.02, atol=0.02)
