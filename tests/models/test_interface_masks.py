"""``attn_implementation="fasttx"`` where layers add masks by themselves, and where the call reaches an attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from models.test_interface import LENGTHS, SMALL, batch, count_calls
from torch import Tensor

import fasttx
from fasttx.models.attention import reach

BOTH: dict[str, Any] = dict(
    vocab_size=99,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=37,
    decoder_ffn_dim=37,
    max_position_embeddings=64,
    pad_token_id=1,
    bos_token_id=2,
    eos_token_id=3,
    decoder_start_token_id=2,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    init_std=0.3,
)
SERIES = {
    k: v for k, v in BOTH.items() if not k.endswith("token_id") and k not in ("vocab_size", "max_position_embeddings")
}
SERIES |= dict(prediction_length=4, context_length=8, lags_sequence=[1, 2], num_time_features=1)
VISION = dict(
    hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4
)
T5 = dict(vocab_size=99, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=1)

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Informer": ("InformerModel", SERIES),
    "Informer, full attention": ("InformerModel", SERIES | {"attention_type": "full"}),
    "Pegasus-X": ("PegasusXModel", BOTH | {"block_size": 4, "num_global_tokens": 2}),
    "NLLB-MoE": ("NllbMoeModel", BOTH | {"num_experts": 2, "expert_capacity": 64}),
    "BigBird-Pegasus": ("BigBirdPegasusModel", BOTH | {"attention_type": "original_full"}),
    "GIT": ("GitModel", SMALL | {"vision_config": VISION}),
}


def build(name: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**options)).eval()


def inputs_for(name: str) -> dict[str, Tensor]:
    if name != "InformerModel":
        text = batch(False)
        return text if name in ("GitModel", "LayoutLMModel") else text | {"decoder_input_ids": text["input_ids"]}
    generator = torch.Generator().manual_seed(1)
    past, future = torch.randn(2, 10, 2, generator=generator), torch.randn(2, 4, 2, generator=generator)
    return dict(
        past_values=past[..., 0],
        past_time_features=past[..., 1:],
        past_observed_mask=torch.ones(2, 10),
        future_values=future[..., 0],
        future_time_features=future[..., 1:],
    )


def hidden(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(1)  # ProbSparse attention samples keys
    with torch.no_grad():
        out = model(**inputs).last_hidden_state
    if "attention_mask" in inputs and out.shape[1] == max(LENGTHS) and "decoder_input_ids" not in inputs:
        return out[inputs["attention_mask"].bool()]
    return out


@pytest.mark.parametrize("name", list(MODELS))
def test_a_class_without_sdpa_gets_masks_that_it_can_add(name: str) -> None:
    """As eager's: bool masks let the future into the past there."""
    cls, options = MODELS[name]
    model, inputs = build(cls, options), inputs_for(cls)
    model.set_attn_implementation("eager")
    want = hidden(model, inputs)
    model.set_attn_implementation("fasttx")
    assert model.config._attn_implementation == "fasttx"
    torch.testing.assert_close(hidden(model, inputs), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outer", ["", "0."])
def test_a_part_is_named_in_the_call_that_reaches_it(outer: str) -> None:
    """T5's stacks have configs of their own: what is said of one of them, typed as it is said, reaches that one."""
    whole = build("T5Model", T5)
    model = torch.nn.Sequential(whole) if outer else whole
    with pytest.warns(UserWarning, match="replaced nothing"):
        rows = {row.module: row.reason for row in fasttx.patch(model).rows}
    for part, stack in (("encoder", whole.encoder), ("decoder", whole.decoder)):
        call = rows[f"{outer}{part}"].split("alone can be fasttx's: ")[1]
        assert eval(call, {"model": model}) is None
        assert stack.config._attn_implementation == "fasttx"
    assert count_calls(whole, inputs_for("T5Model")) > 0


REACHED = {
    "LayoutLMModel": (SMALL, True),
    "BartModel": (BOTH, True),
    "T5Model": (T5, False),
    "UMT5Model": (T5, False),
    "LongT5Model": (T5, False),
    "SwitchTransformersModel": (T5 | {"num_experts": 2}, False),
    "FNetModel": ({k: v for k, v in SMALL.items() if k != "num_attention_heads"}, False),
}


@pytest.mark.parametrize("name", list(REACHED))
def test_the_call_is_recommended_where_it_reaches_an_attention(name: str) -> None:
    options, reaches = REACHED[name]
    model = build(name, options)
    before = {id(m.config): m.config.to_dict() for m in model.modules() if hasattr(m, "config")}
    says = reach.how_to_set(model)
    assert {id(m.config): m.config.to_dict() for m in model.modules() if hasattr(m, "config")} == before
    with pytest.warns(UserWarning, match="replaced nothing"):
        report = fasttx.patch(model)
    assert report.rows[0].reason.endswith(says)
    assert ("model.set_attn_implementation('fasttx')" in says) == reaches
    inputs = inputs_for(name)
    if name == "FNetModel":
        inputs = {"input_ids": inputs["input_ids"]}
    model.set_attn_implementation("fasttx")
    assert (count_calls(model, inputs) > 0) == reaches
    if "load the model" in says:  # which does reach some of it
        again = type(model)._from_config(model.config, attn_implementation="fasttx").eval()
        assert count_calls(again, inputs) > 0
