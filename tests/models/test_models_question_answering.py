"""Question answering, the one loss of transformers to which padding contributes."""

from __future__ import annotations

from typing import Any

import model_zoo as zoo
import pytest
import torch
from test_models_padding_free import LENS, batch, layer_inputs
from torch import Tensor

import fasttx

CLS = "BertForQuestionAnswering"
ANSWERS = {"start_positions": torch.tensor([3, 1, 2]), "end_positions": torch.tensor([10, 3, 6])}


def model_with(**options: Any) -> Any:
    model = zoo.tiny_model(zoo.BERT, CLS)
    if options:
        fasttx.patch(model, **options)
    return model


def padded_to(seqlen: int, side: str = "right") -> dict[str, Tensor]:
    """The same rows in each length; positions count from the first real token."""
    inputs = batch(*LENS)
    more = seqlen - inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], 1)
    ids = torch.nn.functional.pad(inputs["input_ids"], (0, more), value=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, more))
    positions = torch.arange(seqlen).expand(3, seqlen)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    answers = dict(ANSWERS)
    if side == "left":
        shift = torch.tensor([seqlen - length for length in LENS])
        at = (positions - shift[:, None]) % seqlen
        inputs = {name: value.gather(1, at) for name, value in inputs.items()}
        answers = {name: value + shift for name, value in answers.items()}
    return inputs | answers


def loss64(inputs: dict[str, Tensor]) -> Tensor:
    """A softmax over real tokens, in float64, on logits of the unpatched model."""
    output = zoo.double_of(model_with())(**{name: t for name, t in inputs.items() if name not in ANSWERS})
    real, losses = inputs["attention_mask"].bool(), []
    for name in ("start", "end"):
        for row, keep, at in zip(output[f"{name}_logits"], real, inputs[f"{name}_positions"], strict=True):
            if 0 <= at < len(row) and keep[at]:
                losses.append((row[keep].logsumexp(0) - row[at], name))
    means = [torch.stack([loss for loss, n in losses if n == name]).mean() for name in ("start", "end")]
    return (means[0] + means[1]) / 2


@pytest.mark.parametrize("unpad", ["auto", True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_takes_no_part_in_the_softmax(side: str, unpad: bool | str) -> None:
    model = model_with(unpad=unpad)
    for seqlen in (11, 16):
        inputs = padded_to(seqlen, side)
        loss = model(**inputs).loss
        torch.testing.assert_close(loss.double(), loss64(inputs), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss.double(), loss64(padded_to(11)), rtol=1e-5, atol=1e-6)
        if side == "right":
            lengths_alone = {name: value for name, value in inputs.items() if name != "attention_mask"}
            if unpad is not False:
                torch.testing.assert_close(model(**lengths_alone, seq_lens=list(LENS)).loss, loss)


@pytest.mark.parametrize("seqlen", [11, 16])
def test_an_answer_in_the_padding_is_ignored(seqlen: int) -> None:
    model, inputs = model_with(unpad="auto"), padded_to(seqlen)
    inputs["start_positions"] = torch.tensor([3, 4, 2])  # row 1 has four tokens
    inputs["end_positions"] = torch.tensor([10, 9, 99])
    torch.testing.assert_close(model(**inputs).loss.double(), loss64(inputs), rtol=1e-5, atol=1e-6)


def test_no_answer_at_all() -> None:
    model, inputs = model_with(unpad="auto"), padded_to(16)
    inputs["start_positions"] = inputs["end_positions"] = torch.tensor([15, 15, 15])
    loss = model(**inputs).loss
    assert loss == 0
    loss.backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in model.parameters())


@pytest.mark.parametrize("lengths", [None, list(LENS)], ids=["mask", "lengths"])
def test_hf_is_transformers_with_its_padding(lengths: list[int] | None) -> None:
    inputs = padded_to(16)
    want, model = model_with()(**inputs), model_with(loss="hf")
    seen = layer_inputs(model)
    got = model(**inputs, **({} if lengths is None else {"seq_lens": lengths}))
    assert seen == [(3, 16, 32)]
    torch.testing.assert_close(got.loss, want.loss)
    assert (want.loss.double() - loss64(inputs)).abs() > 1e-3  # padding does contribute there
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got.start_logits[real], want.start_logits[real], rtol=1e-4, atol=1e-4)
    without = {name: value for name, value in inputs.items() if name not in ANSWERS}
    model(**without)
    assert seen[-1] == (1, 22, 32)  # nobody asked for a loss
