"""Quantised models in transformers' hands: Trainer, generate, and what it asks of a quantiser."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from models import model_zoo as zoo
from models.test_quantize import int8_names, tiny

import fasttx


def test_trainer_evaluates_and_predicts_and_does_not_train(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    cls = "BertForSequenceClassification"
    model, inputs = tiny(cls), zoo.inputs_for(zoo.BERT, cls)
    fasttx.quantize(model)
    with torch.no_grad():
        want = model(**inputs)
    rows = [{name: t[i] for name, t in inputs.items()} for i in range(3)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=3, max_steps=1
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(want.loss))
    torch.testing.assert_close(torch.from_numpy(trainer.predict(rows).predictions), want.logits)
    with pytest.raises(RuntimeError, match="train before fasttx.quantize.model. or after fasttx.dequantize.model."):
        trainer.train()


def test_generate() -> None:
    """By a cache that grows, and by a static one, whose decoding transformers may compile."""
    cls = "BertLMHeadModel"
    model = tiny(cls)
    fasttx.quantize(model)
    ids = zoo.inputs_for(zoo.BERT, cls, labels=False)["input_ids"][:2, :4]
    options = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=1)
    found = model.generate(ids, **options)
    assert found.shape == (2, 7) and torch.equal(found[:, :4], ids)
    with torch.no_grad():
        scores = torch.stack([model(found[:, :n]).logits[:, -1] for n in (4, 5, 6)], 1)
    chosen = scores.gather(-1, found[:, 4:, None])[..., 0]
    assert bool((chosen >= scores.amax(-1) - 0.05).all())  # the cache sees one token at a time: other roundings
    static = transformers.GenerationConfig(cache_implementation="static", **options)
    assert torch.equal(model.generate(ids, static), found)


def test_what_transformers_asks_of_a_quantised_model() -> None:
    """Every public name of its interface is there; some differ between its versions."""
    from transformers.quantizers import HfQuantizer

    model = tiny()
    exact = model.encoder.layer[0].output.dense.weight.clone()
    fasttx.quantize(model)
    mark = model.hf_quantizer
    assert isinstance(mark, HfQuantizer) and mark.is_serializable() and not mark.is_trainable
    assert not mark.is_qat_trainable and mark.is_compileable
    assert copy.deepcopy(model).hf_quantizer.is_compileable
    assert model.dequantize(torch.bfloat16) is model and not hasattr(model, "hf_quantizer")
    assert not int8_names(model) and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model.encoder.layer[0].output.dense.weight.float(), exact, rtol=0.02, atol=0.02)
