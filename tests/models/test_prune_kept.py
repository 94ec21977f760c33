"""Pruned weights stay zero through optimizers, patches, copies and checkpoints, until the masks are taken off."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from models.test_prune import CLS, linears, same, tiny, zeros

import fasttx
from fasttx.models import masks


def step(model: Any, optimizer: Any = None, accumulated: int = 1) -> None:
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(accumulated):
        (model.train()(**zoo.inputs_for(zoo.BERT, CLS)).loss / accumulated).backward()
    optimizer.step()
    optimizer.zero_grad()


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "RMSprop, one by one": lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=False),
    "Adafactor": lambda p: transformers.Adafactor(p, lr=0.1, relative_step=False, scale_parameter=False),
}


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_zero(name: str, accumulated: int) -> None:
    """Though the optimizer moves them by what it remembers of the time before."""
    model = tiny()
    optimizer = OPTIMIZERS[name](model.parameters())
    step(model, optimizer)
    fasttx.prune(model, 0.5)
    wanted, before = zeros(model), linears(model)["bert.encoder.layer.0.output.dense"].weight.clone()
    for _ in range(2):
        step(model, optimizer, accumulated)
        assert same(zeros(model), wanted)
    after = linears(model)["bert.encoder.layer.0.output.dense"].weight
    assert ((after != before) | (before == 0)).float().mean() > 0.9


def test_training_is_that_of_torchs_own_masks() -> None:
    from torch.nn.utils import prune

    model, other = tiny(), tiny()
    fasttx.prune(model, 0.5)
    fasttx.patch(model)
    for layer in linears(other).values():
        prune.l1_unstructured(layer, "weight", 0.5)
    for each in (model, other):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05)
        for _ in range(3):
            step(each, optimizer)
    inputs = zoo.inputs_for(zoo.BERT, CLS)
    torch.testing.assert_close(model(**inputs).loss, other(**inputs).loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch_first", [False, True])
def test_layers_stay_fused(patch_first: bool) -> None:
    def said(model: Any) -> list[tuple[str, str, str]]:
        return [(d.what, d.choice, d.reason) for d, _ in fasttx.explain(model, inputs).rows]

    model, plain, inputs = tiny(), tiny(), zoo.inputs_for(zoo.BERT, CLS)
    fasttx.patch(plain)
    wanted = said(plain)
    for call in (fasttx.patch, lambda m: fasttx.prune(m, 0.5))[:: 1 if patch_first else -1]:
        call(model)
    assert said(model) == wanted and any(choice == "one product" for _, choice, _ in wanted)
    gone = zeros(model)
    fasttx.unpatch(model)
    step(model)
    assert same(zeros(model), gone)
    fasttx.patch(model)
    step(model)
    assert same(zeros(model), gone) and said(model) == wanted


def test_a_captured_model_answers_with_the_zeros() -> None:
    model, plain, inputs = tiny(), tiny(), zoo.inputs_for(zoo.BERT, CLS, labels=False)
    with fasttx.capture(model) as captured:
        before = captured(**inputs).logits
        for each in (model, plain):
            fasttx.prune(each, 0.5)
        after = captured(**inputs).logits
        assert captured.stats["freezes"] == 2 and not captured.stats["fallbacks"]
    torch.testing.assert_close(after, plain(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)


def test_copies_pickles_and_loaded_weights() -> None:
    model, dense = tiny(), tiny().state_dict()
    fasttx.prune(model, 0.5)
    wanted = zeros(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double()):
        step(copied)
        assert same(zeros(copied), wanted)
        assert not same(zeros(model), {}) and copied.state_dict().keys() == dense.keys()
    for assign in (False, True):
        assert not model.load_state_dict(copy.deepcopy(dense), assign=assign).missing_keys
        assert same(zeros(model), wanted)
        step(model)
        assert same(zeros(model), wanted)
    with torch.no_grad():
        linears(model)["bert.encoder.layer.0.output.dense"].weight[wanted["bert.encoder.layer.0.output.dense"]] = (
            torch.nan
        )
    step(model)
    assert same(zeros(model), wanted)


def test_a_weight_that_is_computed_now_is_no_finish() -> None:
    model = tiny()
    fasttx.prune(model, 0.5)
    torch.nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].output.dense)
    with pytest.raises(ValueError, match=r"model: got bert\.encoder\.layer\.0\.output\.dense, whose weight"):
        fasttx.prune(model, finish=True)


def test_finished() -> None:
    model = tiny()
    fasttx.prune(model, 0.5)
    twin = copy.deepcopy(model)
    wanted = zeros(model)
    report = fasttx.prune(model, finish=True)
    assert same(zeros(model), wanted) and report.zeros == pytest.approx(0.5) and len(report.replaced) == 12
    step(model)
    assert not any(bool(gone.any()) for gone in zeros(model).values())
    assert all(masks.mask_of(layer) is None for layer in linears(model).values())
    assert not any(layer._load_state_dict_post_hooks for layer in linears(model).values())
    step(twin)  # that one has masks of its own
    assert same(zeros(twin), wanted)
    with torch.no_grad():
        linears(twin)["bert.encoder.layer.1.output.dense"].weight.fill_(1)
    with pytest.warns(UserWarning, match=r"fasttx.prune: 640 pruned weights were not zero any more"):
        fasttx.prune(twin, finish=True)
    assert same(zeros(twin), wanted)


def test_a_compiled_step_of_an_optimizer() -> None:
    torch.compiler.reset()
    model = tiny()
    fasttx.prune(model, 0.5)
    wanted, optimizer = zeros(model), torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(2):
        model(**zoo.inputs_for(zoo.BERT, CLS)).loss.backward()
        compiled()
        assert same(zeros(model), wanted)


def test_trainer_and_its_checkpoint(tmp_path: Path) -> None:
    """Clipped, accumulated, loaded at its end; and on, from the checkpoint."""
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    model, inputs = tiny(), zoo.inputs_for(zoo.BERT, CLS)
    fasttx.prune(model, 0.5)
    wanted = zeros(model)
    rows = [{name: t[i] for name, t in inputs.items()} for i in (0, 1, 2, 0)]

    def train(steps: int, **more: Any) -> Any:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            report_to=[],
            use_cpu=True,
            per_device_train_batch_size=1,
            max_steps=steps,
            gradient_accumulation_steps=2,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            learning_rate=0.05,
            load_best_model_at_end=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train(**more)
        assert same(zeros(model), wanted)

    train(2)
    with torch.no_grad():
        for layer in linears(model).values():
            layer.weight.fill_(1)
    train(4, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
