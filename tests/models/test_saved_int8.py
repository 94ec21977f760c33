"""int8 models through save_pretrained and from_pretrained: the same bits, and no wrong weights where fasttx is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from models import model_zoo as zoo
from models.test_pretrained import directory
from models.test_quantize import int8_names, tiny

import fasttx
from fasttx.models import saved_int8

HEAD = "BertForSequenceClassification"


def outputs(model: Any, family: Any = zoo.BERT) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model.eval()(**zoo.inputs_for(family, type(model).__name__, labels=False))
    return [value for value in found.values() if isinstance(value, torch.Tensor)]


def saved(folder: Path, cls: str = HEAD, family: Any = zoo.BERT, **options: Any) -> Any:
    model = zoo.tiny_model(family, cls)
    fasttx.quantize(model)
    model.save_pretrained(folder, **options)
    return model


def assert_same(found: Any, model: Any, family: Any = zoo.BERT) -> None:
    state = model.state_dict()
    assert set(found.state_dict()) == set(state) and int8_names(found) == int8_names(model)
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name]), name
    for a, b in zip(outputs(found, family), outputs(model, family), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)  # where tensors lie decides about last bits of attention


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    model = saved(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert tensors[saved_int8.NOTE].tolist() == [1]
    name = "bert.encoder.layer.1.intermediate.dense"
    assert tensors[f"{name}.weight"].shape == (37, 1, 32) and tensors[f"{name}.weight"].dtype == torch.int8
    assert torch.equal(tensors[f"{name}.weight_scale"].view(torch.float32), model.get_submodule(name).weight_scale)
    size = sum(tensor.numel() * tensor.element_size() for key, tensor in tensors.items() if ".encoder." in key)
    assert size < 0.45 * sum(4 * p.numel() for p in zoo.tiny_model(zoo.BERT, HEAD).bert.encoder.parameters())


@pytest.mark.parametrize("family", zoo.FAMILIES, ids=lambda family: family.name)
def test_every_family(family: Any, tmp_path: Path) -> None:
    model = saved(tmp_path, family.bare, family)
    assert_same(type(model).from_pretrained(tmp_path), model, family)


@pytest.mark.parametrize("cls", [cls for family, cls in zoo.TEXT_CLASSES if family is zoo.BERT])
def test_every_head(cls: str, tmp_path: Path) -> None:
    model = saved(tmp_path, cls)
    assert_same(getattr(transformers, cls).from_pretrained(tmp_path), model)


def test_sharded_and_patched(tmp_path: Path) -> None:
    model = zoo.tiny_model(zoo.BERT, HEAD)
    fasttx.patch(model)
    fasttx.quantize(model, fasttx.Int8Config(skip=["*.output.dense"]))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(found) is transformers.BertForSequenceClassification and len(int8_names(found)) == 8
    fasttx.patch(found)
    assert_same(found, model)


def test_another_head_and_another_dtype(tmp_path: Path) -> None:
    model = saved(tmp_path)
    bare = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert type(bare) is transformers.BertModel and {p.dtype for p in bare.parameters()} == {torch.bfloat16}
    for name, tensor in bare.state_dict().items():
        given = model.bert.state_dict()[name]
        assert torch.equal(tensor, given if tensor.dtype in (torch.int8, torch.float32) else given.bfloat16()), name
    bare.save_pretrained(tmp_path / "bare")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "bare")
    assert torch.equal(again.bert.encoder.layer[1].output.dense.weight, model.bert.encoder.layer[1].output.dense.weight)


def test_two_encoders_in_one_model(tmp_path: Path) -> None:
    halves = [tiny(), tiny("BertLMHeadModel", is_decoder=True, add_cross_attention=True)]
    model = transformers.EncoderDecoderModel(encoder=halves[0], decoder=halves[1])
    fasttx.quantize(model)
    model.save_pretrained(tmp_path)
    found = transformers.EncoderDecoderModel.from_pretrained(tmp_path)
    assert int8_names(found) == int8_names(model) and len(int8_names(found)) > 24
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_float_model_of_the_same_config_is_saved_as_one(tmp_path: Path) -> None:
    model = tiny()
    fasttx.quantize(model)
    twin = transformers.BertModel(model.config)
    twin.save_pretrained(tmp_path)
    again = transformers.BertModel.from_pretrained(tmp_path)
    assert not int8_names(again) and torch.equal(again.pooler.dense.weight, twin.pooler.dense.weight)


def test_what_is_loaded_is_what_quantize_makes(tmp_path: Path) -> None:
    """It can be quantised no further, made float, saved as such, and evaluated by Trainer, which asks is_quantized."""
    saved(tmp_path)
    found = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert found.hf_quantizer.is_serializable() and not getattr(found, "is_quantized", False)
    fasttx.dequantize(found)
    assert not hasattr(found, "hf_quantizer") and not hasattr(found.config, "quantization_config")
    found.save_pretrained(tmp_path / "float")
    assert "quantization_config" not in json.loads((tmp_path / "float" / "config.json").read_text())
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "float")
    for a, b in zip(outputs(again), outputs(found), strict=True):
        torch.testing.assert_close(a, b)


def test_sentence_transformers(tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = st.SentenceTransformer(str(directory()), device="cpu")
    fasttx.quantize(model)
    texts = ["A short text.", "A text of a few more words than the other one."]
    want = model.encode(texts)
    model.save(str(tmp_path))
    found = st.SentenceTransformer(str(tmp_path), device="cpu")
    assert len(int8_names(found)) == 36 and abs(found.encode(texts) - want).max() < 0.01


ELSEWHERE = """
import sys, torch, transformers

sys.modules["fasttx"] = None  # as where it is not installed
folder = sys.argv[1]
try:
    transformers.BertForSequenceClassification.from_pretrained(folder)
except RuntimeError as problem:
    print("refused", problem)
del sys.modules["fasttx"]
import fasttx.models

model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
inputs, want = torch.load(f"{folder}/want.pt")
with torch.no_grad():
    print("equal", torch.allclose(model(**inputs).logits, want, atol=0.05))
"""


def test_in_another_process_without_fasttx_and_with_it(tmp_path: Path) -> None:
    model = saved(tmp_path)
    inputs = zoo.inputs_for(zoo.BERT, HEAD, labels=False)
    with torch.no_grad():
        torch.save((inputs, model.eval()(**inputs).logits), tmp_path / "want.pt")
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line.split()[0] + " " + line.split()[-1] for line in ran.stdout.splitlines() if line.strip()]
    assert any(line.startswith("refused") for line in lines) and lines[-1] == "equal True", ran.stdout
    assert saved_int8.NOTE in ran.stderr + ran.stdout


# ----------------------------------------------------------------------------------------------------------- what fails


def test_a_part_that_was_quantised_by_itself_is_refused_and_never_read_as_floats(tmp_path: Path) -> None:
    """The model that is saved does not know of it."""
    for part in ("bert", "bert.encoder"):
        model = zoo.tiny_model(zoo.BERT, HEAD)
        fasttx.quantize(model.get_submodule(part))
        model.save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            transformers.BertForSequenceClassification.from_pretrained(tmp_path)


def test_a_part_that_was_made_float_by_itself(tmp_path: Path) -> None:
    model = saved(tmp_path)
    fasttx.dequantize(model.bert.encoder)
    model.save_pretrained(tmp_path)
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(again.bert.encoder.layer[0].output.dense.weight, model.bert.encoder.layer[0].output.dense.weight)


@pytest.mark.parametrize(
    "options", [{"num_labels": 7}, {"vocab_size": 500}, {"num_labels": 7, "ignore_mismatched_sizes": True}]
)
def test_other_shapes_than_those_in_the_file(options: dict[str, Any], tmp_path: Path) -> None:
    """transformers compares none where a quantizer is."""
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"the checkpoint: got .*; allowed is \((7|500),"):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path, **options)


@zoo.needs("ModernBERT")
def test_rotary_frequencies_stay_float32(tmp_path: Path) -> None:
    family = zoo.BY_NAME["ModernBERT"]
    model = zoo.tiny_model(family, family.bare).to(torch.bfloat16)
    fasttx.quantize(model)
    model.save_pretrained(tmp_path)
    found = type(model).from_pretrained(tmp_path)
    fresh = type(model).from_pretrained(tmp_path, dtype=torch.float16)
    for name, buffer in found.named_buffers():
        if "inv_freq" in name:
            assert buffer.dtype == torch.float32 == fresh.get_buffer(name).dtype


def test_a_checkpoint_is_loaded_by_load_state_dict_as_trainer_does(tmp_path: Path) -> None:
    model = saved(tmp_path)
    other = zoo.tiny_model(zoo.BERT, HEAD, seed=1)
    fasttx.quantize(other)
    report = other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=False)
    assert not report.missing_keys and report.unexpected_keys == [saved_int8.NOTE]
    assert_same(other, model)
    plain = zoo.tiny_model(zoo.BERT, HEAD)
    with pytest.raises(RuntimeError, match="size mismatch"):
        plain.load_state_dict(model.state_dict(), strict=False)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"format: got 2; allowed is 1"),
        ({"layers": ["encoder.layer.7.output.dense"]}, r"the layer encoder.layer.7.output.dense, .* no such module"),
        ({"layers": ["encoder.layer.0"]}, r"the layer encoder.layer.0, .* has a BertLayer"),
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path)


def test_tensors_that_are_not_there(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["bert.encoder.layer.1.output.dense.weight_scale"]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no int8 weights of bert.encoder.layer.1.output.dense; allowed"):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path)


def test_a_float_checkpoint_is_not_quantised_by_a_config(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"quantization_config: got fasttx_int8; .* call fasttx.quantize after loading"
    ):
        transformers.BertModel.from_pretrained(tmp_path, quantization_config=saved_int8.Int8OnDisk())


def test_float_weights_beside_scales_are_refused(tmp_path: Path) -> None:
    """Under a quantizer transformers compares no shapes, and would cut the floats down to integers."""
    saved(tmp_path)
    file, name = tmp_path / "model.safetensors", "bert.encoder.layer.0.output.dense.weight"
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file(state | {name: state[name][:, 0].float()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"layer.0.output.dense.weight of \(32, 37\); allowed is \(32, 1, 37\)"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
