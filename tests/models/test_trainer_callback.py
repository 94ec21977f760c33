"""FastTxCallback: what it patches, counts, logs and warns of, in a Trainer of a tiny model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo

import fasttx

pytest.importorskip("accelerate", reason="Trainer needs accelerate")
LENGTHS = (11, 4, 7, 6)


def trainer_of(model: Any, folder: Path, callback: Any, accumulation: int = 1, **more: Any) -> Any:
    """A Trainer of one epoch of four texts, two in a batch, that logs each step."""
    mask = torch.arange(11) < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(mask, torch.randint(2, zoo.VOCAB, (4, 11), generator=torch.Generator().manual_seed(1)), 1)
    data = [{"input_ids": i, "attention_mask": m.long(), "labels": n % 3} for n, (i, m) in enumerate(zip(ids, mask))]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback], **more)


def test_it_patches_and_logs_real_tokens(tmp_path: Path) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForSequenceClassification")
    callback = fasttx.FastTxCallback(unpad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a step of one part has the loss that transformers has
        trainer = trainer_of(model, tmp_path, callback)
    assert fasttx.is_patched(model) and callback.report is not None and callback.report.replaced
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2 and all(entry["tokens_per_second"] > 0 for entry in logged)
    assert sum(entry["padding_share"] for entry in logged) / 2 == pytest.approx(1 - sum(LENGTHS) / 44)
    assert not model._forward_pre_hooks and fasttx.is_patched(model)


@pytest.mark.parametrize("loss", ["correct", "hf"])
def test_it_warns_of_another_loss(tmp_path: Path, loss: str) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForSequenceClassification")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer_of(model, tmp_path, fasttx.FastTxCallback(loss=loss), accumulation=2)
    said = [str(w.message) for w in seen if "2 times as large" in str(w.message)]
    assert len(said) == (loss == "correct")


def test_a_model_that_trainer_makes_anew_is_patched_too(tmp_path: Path) -> None:
    """By model_init at each train(), as a search for hyperparameters does."""
    made: list[Any] = []

    def model_init() -> Any:
        made.append(zoo.tiny_model(zoo.BERT, "BertForSequenceClassification"))
        return made[-1]

    trainer = trainer_of(None, tmp_path, fasttx.FastTxCallback(), model_init=model_init)
    trainer.train()
    assert len(made) == 2 and trainer.model is made[1] and fasttx.is_patched(made[1])


def test_what_was_patched_before_stays(tmp_path: Path) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForSequenceClassification")
    fasttx.patch(model, loss="hf")
    callback = fasttx.FastTxCallback()
    trainer_of(model, tmp_path, callback, accumulation=2)
    assert callback.report is None and model._fasttx.options.loss == "hf"


@zoo.needs("ModernBERT")
def test_a_loss_that_transformers_divides_alike_is_no_news(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = zoo.tiny_model(zoo.BY_NAME["ModernBERT"], "ModernBertForMaskedLM")
        trainer_of(model, tmp_path, fasttx.FastTxCallback(), accumulation=2)
