"""A patched model copied, pickled, saved and loaded; models patched as they are loaded."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from models.model_zoo import attention_of, stranger

import fasttx


@pytest.mark.parametrize("cls", ["BertModel", "BertForMaskedLM"])
def test_deepcopy(cls: str) -> None:
    model = zoo.tiny_model(zoo.BERT, cls)
    inputs = zoo.inputs_for(zoo.BERT, cls)
    fasttx.patch(model)
    twin = copy.deepcopy(model)
    assert fasttx.is_patched(twin) and twin.config is not model.config
    assert torch.equal(model(**inputs)[0], twin(**inputs)[0])
    fasttx.unpatch(twin)
    assert fasttx.is_patched(model) and attention_of(model) == "fasttx"
    assert type(twin) is getattr(transformers, cls) and attention_of(twin) == "sdpa"


PICKLED = (
    "BertModel",
    "RobertaForTokenClassification",
    "DistilBertForMaskedLM",
    "AlbertForPreTraining",
    "DeiTForImageClassification",
    "MPNetForMaskedLM",
    "ModernBertForQuestionAnswering",
)


@pytest.mark.parametrize(
    "classes", [PICKLED[:1], pytest.param(PICKLED[1:], marks=pytest.mark.slow)], ids=["BERT", "others"]
)
def test_pickle_in_another_process(classes: tuple[str, ...], tmp_path: Path) -> None:
    """Each saved alone, so that nothing but the pickle itself brings in what it needs."""
    saved = []
    for family, cls in [c for c in zoo.CLASSES if c[1] in classes]:
        model, inputs = zoo.tiny_model(family, cls), zoo.inputs_for(family, cls)
        fasttx.patch(model, loss="hf")
        again = pickle.loads(pickle.dumps(model))
        assert type(again) is type(model) and fasttx.is_patched(again)
        saved.append(str(tmp_path / f"{cls}.pt"))
        if "attention_mask" in inputs:  # what unpatched models give at padding
            inputs |= {"attention_mask": torch.ones_like(inputs["attention_mask"])}
        torch.save((model, inputs, model(**inputs)[0]), saved[-1])
    code = (
        "import sys, torch\n"
        "for path in sys.argv[1:]:\n"
        "    model, inputs, want = torch.load(path, weights_only=False)\n"
        "    torch.testing.assert_close(model(**inputs)[0], want)\n"
        "    import fasttx\n"
        "    assert fasttx.is_patched(model)\n"
        "    fasttx.unpatch(model)\n"
        "    torch.testing.assert_close(model(**inputs)[0], want, rtol=1e-4, atol=1e-4)\n"
        "    assert type(model).__module__.startswith('transformers.'), type(model)\n"
        "    assert model.config._attn_implementation in ('sdpa', 'eager')\n"
    )
    subprocess.run([sys.executable, "-c", code, *saved], check=True, cwd=Path(fasttx.__file__).parents[1])


SAVED = (
    "BertModel",
    "BertForSequenceClassification",
    "ElectraForPreTraining",
    "DistilBertForSequenceClassification",
    "AlbertForMaskedLM",
    "ViTForImageClassification",
)


@pytest.mark.parametrize("cls", [cls for cls in zoo.IDS if cls in SAVED])
def test_save_pretrained(cls: str, tmp_path: Path) -> None:
    family = dict((c, f) for f, c in zoo.CLASSES)[cls]
    model = zoo.tiny_model(family, cls)
    inputs = zoo.inputs_for(family, cls)
    want = model(**inputs)[0]  # before saving: it settles config.problem_type
    model.save_pretrained(tmp_path / "plain")
    fasttx.patch(model)
    model.save_pretrained(tmp_path / "patched")
    plain, patched = ((tmp_path / kind / "config.json").read_text() for kind in ("plain", "patched"))
    assert plain == patched
    again = getattr(transformers, cls).from_pretrained(tmp_path / "patched")
    assert attention_of(again) == "sdpa" and not fasttx.is_patched(again)
    torch.testing.assert_close(again(**inputs)[0], want)
    state = torch.load(_saved(model.state_dict()))
    fasttx.unpatch(model)
    model.load_state_dict(state)


def _saved(state: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_save_pretrained_with_output_attentions_in_the_config(tmp_path: Path) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.warns(UserWarning, match="output_attentions is set"):
        fasttx.patch(model, norm=False, mlp=False)
    assert len(model(**zoo.inputs_for(zoo.BERT, "BertModel")).attentions) == 2
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["output_attentions"] is True


def test_patch_transformers(tmp_path: Path) -> None:
    zoo.tiny_model(zoo.BERT, "BertForMaskedLM").save_pretrained(tmp_path / "bert")
    stranger().save_pretrained(tmp_path / "layoutlm")
    original = transformers.PreTrainedModel.__dict__["from_pretrained"]
    signature_doc = transformers.BertModel.from_pretrained.__doc__
    with pytest.raises(ValueError, match="not in force"):
        fasttx.unpatch_transformers()
    fasttx.patch_transformers(loss="hf")
    fasttx.patch_transformers()
    try:
        assert transformers.BertModel.from_pretrained.__doc__ == signature_doc
        auto = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "bert")
        direct, info = transformers.BertForMaskedLM.from_pretrained(tmp_path / "bert", output_loading_info=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            other = transformers.AutoModel.from_pretrained(tmp_path / "layoutlm")
        assert fasttx.is_patched(auto) and fasttx.is_patched(direct) and "missing_keys" in info
        assert not fasttx.is_patched(other)
    finally:
        fasttx.unpatch_transformers()
    assert transformers.PreTrainedModel.__dict__["from_pretrained"] is original
    assert not fasttx.is_patched(transformers.AutoModel.from_pretrained(tmp_path / "bert"))
    assert fasttx.is_patched(auto)
    with pytest.raises(TypeError):
        fasttx.patch_transformers(embeddings=True)
    assert transformers.PreTrainedModel.__dict__["from_pretrained"] is original
