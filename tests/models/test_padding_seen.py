"""What a user could see of packing: hooks, adapters by row, and labels at padding."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.test_padding_free import bare, batch, layer_inputs
from torch import Tensor
from torch.nn.utils import prune

import fasttx
from fasttx.models.padding import lengths

PARTS = ("encoder.layer.0", "encoder.layer.1.attention.self", "encoder.layer.1.output.dense")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("part", PARTS)
def test_hooks_see_the_padded_batch(part: str, kind: str, when: str) -> None:
    shapes: list[torch.Size] = []

    def hook(module: Any, first: Any, *rest: Any) -> None:
        value = first[0] if isinstance(first, tuple) else first
        shapes.append(value.shape)

    model = bare(unpad=None)
    module = model.get_submodule(part)
    if when == "before":
        getattr(module, f"register_{kind}_hook")(hook)
    report = fasttx.patch(model)
    if when == "after":
        getattr(module, f"register_{kind}_hook")(hook)
    else:
        assert [row.reason.split(" is ")[0] for row in report.left_alone] == [f"a hook in layer.{part[14]}"]
    model(**batch(11, 4, 7)).last_hidden_state.sum().backward()
    assert shapes and all(shape[:2] == (3, 11) for shape in shapes)


class Half(prune.BasePruningMethod):
    """A user's own choice of what to prune."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        return (torch.arange(t.numel()) % 2).view_as(t) * default_mask


@pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*:FutureWarning")
@pytest.mark.parametrize(
    "put",
    [
        lambda linear: prune.l1_unstructured(linear, "weight", 0.5),
        lambda linear: Half.apply(linear, "bias"),
        lambda linear: Half.apply(linear, "weight"),
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
    ],
    ids=["pruned", "bias by an own class", "weight by an own class", "weight norm", "spectral norm"],
)
def test_hooks_that_make_a_weight_leave_a_batch_packed(put: Callable[[Any], Any]) -> None:
    """Those of torch.nn.utils compute a weight before each call, and look at no token."""
    plain, model = bare(unpad=None), bare(unpad=None)
    for one in (plain, model):
        torch.manual_seed(0)
        put(one.encoder.layer[1].attention.self.query)
        put(one.encoder.layer[0].output.dense)
    report = fasttx.patch(model, unpad=True)
    assert not [row for row in report.left_alone if row.reason.startswith("a hook in ")]
    seen = layer_inputs(model)
    inputs = batch(11, 4, 7)
    real = inputs["attention_mask"].bool()
    got, want = model(**inputs).last_hidden_state[real], plain(**inputs).last_hidden_state[real]
    assert seen == [(1, 22, 32)]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_hooks_of_transformers_and_of_fsdp_leave_a_batch_packed() -> None:
    model = bare()
    model(**batch(11, 4, 7), output_hidden_states=True, output_attentions=True)  # capture hooks stay from now on
    hooks = importlib.util.find_spec("transformers.utils.output_capturing") is not None  # else a forward of its own
    assert any(layer._forward_hooks for layer in model.encoder.layer) == hooks

    def gather(module: Any, args: Any) -> None: ...

    gather.__module__ = "torch.distributed.fsdp._fully_shard"
    model.encoder.layer[0].register_forward_pre_hook(gather)
    seen = layer_inputs(model)
    model(**batch(11, 4, 7))
    assert seen == [(1, 22, 32)]


def test_a_forward_that_was_put_back_is_nobodys_own() -> None:
    """transformers 5.0 leaves it on the instance after a call that asked for attentions."""
    model = bare(unpad=None)
    want = model(**batch(11, 4, 7)).last_hidden_state[batch(11, 4, 7)["attention_mask"].bool()]

    def put_back() -> None:
        for layer in model.encoder.layer:
            layer.forward, layer.attention.self.forward = layer.forward, layer.attention.self.forward

    put_back()
    report = fasttx.patch(model)
    assert not report.left_alone
    attention = model.encoder.layer[1].attention.self
    assert "forward" not in attention.__dict__  # it would hide the patch's
    put_back()
    seen = layer_inputs(model)
    torch.testing.assert_close(
        model(**batch(11, 4, 7)).last_hidden_state[batch(11, 4, 7)["attention_mask"].bool()],
        want,
        rtol=1e-4,
        atol=1e-4,
    )
    assert seen == [(1, 22, 32)]
    fasttx.unpatch(model)
    assert "forward" not in attention.__dict__


def test_peft_adapters_by_row() -> None:
    """PEFT hands the names of each row's adapter to its layers in hooks, and they expect a row each."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    inputs = batch(11, 4, 7)
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(zoo.tiny_model(zoo.BERT, "BertModel"), config).eval()
    model.add_adapter("other", config)
    names = ["default", "other", "__base__"]
    want = model(**inputs, adapter_names=names).last_hidden_state
    fasttx.patch(model)
    real = inputs["attention_mask"].bool()
    got = model(**inputs, adapter_names=names).last_hidden_state
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-5)
    seen: list[Any] = []
    zoo.before(model.base_model.model.encoder.layer[0], lambda args: seen.append(tuple(args[0].shape)))
    model(**inputs)
    assert seen == [(1, 22, 32)]  # the hooks were of that call alone


HEADS = ["BertForMaskedLM", "BertForTokenClassification", "BertForPreTraining"]


def with_labels_at_padding(cls: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Labels for all positions, and the same but for padding."""
    inputs = zoo.inputs_for(zoo.BERT, cls)
    everywhere = inputs | {"labels": inputs["input_ids"] % 3}
    at_tokens = everywhere["labels"].masked_fill(inputs["attention_mask"] == 0, -100)
    return everywhere, everywhere | {"labels": at_tokens}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cls", HEADS)
def test_labels_at_padding(cls: str, training: bool) -> None:
    """A loss over what is computed at padding is transformers' own under "hf", and leaves it out under "correct"."""
    model = zoo.tiny_model(zoo.BERT, cls).train(training)
    everywhere, at_tokens = with_labels_at_padding(cls)
    want, want_at_tokens = model(**everywhere).loss, model(**at_tokens).loss
    assert abs(float(want.detach() - want_at_tokens.detach())) > 1e-3
    fasttx.patch(model, loss="hf")
    torch.testing.assert_close(model(**everywhere).loss, want)
    torch.testing.assert_close(model(**at_tokens).loss, want_at_tokens)
    for options in ({}, {"unpad": False}):
        fasttx.patch(model, **options)
        torch.testing.assert_close(model(**everywhere).loss, want_at_tokens)
        items = 2 * int((at_tokens["labels"] != -100).sum())
        torch.testing.assert_close(model(**everywhere, num_items_in_batch=items).loss, want_at_tokens / 2)


def test_labels_at_padding_by_lengths_alone() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM").train()
    everywhere, at_tokens = with_labels_at_padding("BertForMaskedLM")
    want = model(**at_tokens).loss
    fasttx.patch(model)
    del everywhere["attention_mask"]
    torch.testing.assert_close(model(**everywhere, seq_lens=zoo.LENGTHS).loss, want)


def test_only_labels_at_padding_keep_hf_padded() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForTokenClassification")
    everywhere, at_tokens = with_labels_at_padding("BertForTokenClassification")
    fasttx.patch(model, loss="hf")
    seen = layer_inputs(model)
    model(**everywhere)
    model(**at_tokens)
    assert seen == [(3, 11, 32), (1, 22, 32)]


def test_lengths_that_nobody_checked_mix_no_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is not waited for: there lengths that disagree with the mask are taken, and cut rows, not sequences."""
    model, inputs = bare(), batch(11, 4, 7)
    want = model(**batch(9, 4, 7)).last_hidden_state
    monkeypatch.setattr(lengths, "values_may_be_read", lambda device: False)
    got = model(**inputs, seq_lens=(9, 4, 7)).last_hidden_state
    torch.testing.assert_close(got, want)


def test_a_traced_head_in_training_holds_for_other_labels() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM", return_dict=False).train().requires_grad_(False)
    fasttx.patch(model)
    inputs = zoo.inputs_for(zoo.BERT, "BertForMaskedLM")
    ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
    traced = torch.jit.trace(
        lambda *args: model(args[0], args[1], labels=args[2])[0],
        (ids, mask, torch.full_like(labels, -100)),
        check_trace=False,
    )
    torch.testing.assert_close(traced(ids, mask, labels), model(**inputs)[0])
