"""Models within others: BERT under a configuration of another family (DPR), torch.nn's in an unknown one (SigLIP)."""

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


def test_a_warning_says_that_the_layers_around_a_torch_module_stay() -> None:
    """SigLIP pools with a torch.nn.MultiheadAttention: that alone is replaced."""
    config = transformers.SiglipVisionConfig(image_size=16, patch_size=8, **SIZES)
    model = transformers.SiglipVisionModel(config)
    with pytest.warns(UserWarning, match="replaced only torch.nn's modules in SiglipVisionModel: the model: "):
        report = fasttx.patch(model)
    assert [row.after for row in report.replaced] == ["fasttx.nn.MultiheadAttention"]
    assert ["siglip_vision_model" in row.reason for row in report.left_alone] == [True]
