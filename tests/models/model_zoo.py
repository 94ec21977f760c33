"""Tiny random models of every family and head, and inputs for them."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import fasttx
from fasttx.models.families.family import Family
from fasttx.models.heads.kinds import KINDS
from fasttx.models.padding.model import Model
from fasttx.models.plan import FAMILIES as EVERY_FAMILY
from fasttx.models.role import Stays

VOCAB = 99
WATCHES: list[Any] = []
"""Handles of :func:`before` and :func:`after`, which the fixture in conftest.py removes."""
LENGTHS = (11, 4, 7)  # padded to the longest, which is odd
CHOICES = 2

IMAGES = frozenset(("vit", "deit"))
"""``model_type`` of families that look at images, which have no padding."""
BUILT_OTHERWISE = f"transformers {transformers.__version__} builds it otherwise"
"""Why attention is left alone that an old transformers does not look up in its registry."""
DISTINCT = {"albert": 1}
"""How many layers there are in a tiny model, where these are not two: ALBERT calls one of them twice."""
ENDS = {"distilbert": 2, "albert": 2, "modernbert": 0} | dict.fromkeys(IMAGES, 0)
"""In how many modules of a tiny model sums and norms are fused, where these are not four."""

OPTIONS: dict[str, dict[str, Any]] = {
    "distilbert": {"seq_classif_dropout": 0.0, "qa_dropout": 0.0},
    "albert": {"embedding_size": 20, "classifier_dropout_prob": 0.0},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "conv_kernel_size": 3,
    },
    "modernbert": {
        "local_attention": 6,
        "global_attn_every_n_layers": 2,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
    },
    "vit": {"image_size": 8, "patch_size": 4, "encoder_stride": 4},
    "deit": {"image_size": 8, "patch_size": 4, "encoder_stride": 4},
}
"""What a family's configuration needs besides."""
OPTION_NAMES = {
    "distilbert": {
        "intermediate_size": "hidden_dim",
        "hidden_dropout_prob": "dropout",
        "hidden_act": "activation",
        "attention_probs_dropout_prob": "attention_dropout",
    },
    "modernbert": {
        "hidden_dropout_prob": "mlp_dropout",
        "hidden_act": "hidden_activation",
        "attention_probs_dropout_prob": "attention_dropout",
    },
}
"""What a family calls an option that BERT has under another name."""


def tiny_config(family: Family, **changes: Any) -> Any:
    """A configuration of `family` with two layers of width 32."""
    options = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=64,
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
        initializer_range=0.3,  # wide enough that attention is far from uniform
        num_labels=3,
    )
    names = OPTION_NAMES.get(family.model_type, {})
    options |= OPTIONS.get(family.model_type, {}) | changes
    return transformers.AutoConfig.for_model(family.model_type, **{names.get(k, k): v for k, v in options.items()})


def tiny_model(family: Family, cls: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of `cls` in eval mode; causal language models become decoders."""
    if family.heads.get(cls) == "causal_lm":
        changes = {"is_decoder": True} | changes
    if family.heads.get(cls) in ("question_answering", "counted_question_answering", "sentence_order_pretraining"):
        changes = {"num_labels": 2} | changes  # start and end; in order or not
    config = tiny_config(family, **changes)
    torch.manual_seed(seed)
    model = getattr(importlib.import_module(family.source), cls)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1, where mistakes hide
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def known(family: Family) -> bool:
    """Whether this transformers builds the family's attention as fasttx knows it; 5.0 does not everywhere."""
    report = fasttx.patch(tiny_model(family, family.bare))
    return not any(row.reason.startswith(BUILT_OTHERWISE) for row in report.left_alone)


FAMILIES = tuple(family for family in EVERY_FAMILY if known(family))
BERT = FAMILIES[0]
BY_NAME = {family.name: family for family in EVERY_FAMILY}
TEXT_FAMILIES = [family for family in FAMILIES if family.model_type not in IMAGES]

OTHER_LOSSES = frozenset(reason for family in FAMILIES for reason in family.other_heads.values() if reason)
"""Why losses are left to transformers."""
LEFT = OTHER_LOSSES | {stays.reason for family in FAMILIES for stays in family.roles(Stays).values()}
"""Why that and parts of models are."""


def passes_on(family: Family) -> bool:
    """Whether its models hand arguments that they do not know to the encoder."""
    return all(model.passes_on for model in family.roles(Model).values())


def needs(*names: str) -> pytest.MarkDecorator:
    """Of a test of these families alone: skipped where their attention is built otherwise."""
    missing = [name for name in names if BY_NAME[name] not in FAMILIES]
    return pytest.mark.skipif(bool(missing), reason=f"{BUILT_OTHERWISE}: the attention of {', '.join(missing)}")


def works(family: Family, cls: str) -> bool:
    """Whether transformers' own class does: two old ones for multiple choice read a pooler that they lack."""
    if family.heads.get(cls) != "multiple_choice":
        return True
    return getattr(tiny_model(family, cls).base_model, "pooler", "ELECTRA has none") is not None


CLASSES: list[tuple[Family, str]] = [
    (family, cls)
    for family in FAMILIES
    for cls in (family.bare, *family.heads, *family.other_heads)
    if works(family, cls)
]
IDS = [cls for _, cls in CLASSES]
OVER_VOCABULARY = [
    (family, cls) for family, cls in CLASSES if cls in family.heads and KINDS[family.heads[cls]].vocabulary is not None
]
TEXT_CLASSES = [(family, cls) for family, cls in CLASSES if family.model_type not in IMAGES]
TEXT_IDS = [cls for _, cls in TEXT_CLASSES]


def padding_mask() -> Tensor:
    return (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()


def inputs_for(family: Family, cls: str, labels: bool = True) -> dict[str, Tensor]:
    """A padded batch, with labels for the head of `cls`; padding is not labelled."""
    generator = torch.Generator().manual_seed(7)
    mask = padding_mask()
    batch, length = mask.shape

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    if family.model_type in IMAGES:
        return images_for(family, cls, labels, generator)
    ids = draw(VOCAB - 2, batch, length) + 2
    inputs = {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}
    kind = family.heads.get(cls)
    if kind == "multiple_choice":
        inputs = {name: t.repeat_interleave(CHOICES, 0).view(batch, CHOICES, length) for name, t in inputs.items()}
        inputs["input_ids"][:, 1, 1:3] = draw(VOCAB - 2, batch, 2) + 2
    if labels and kind is not None:
        inputs |= labels_for(kind, draw, mask)
    return inputs


def images_for(family: Family, cls: str, labels: bool, generator: torch.Generator) -> dict[str, Tensor]:
    """Images of four patches, with labels for the head of `cls`."""
    inputs = {"pixel_values": torch.randn(3, 3, 8, 8, generator=generator)}
    if labels and cls in family.heads:
        inputs["labels"] = torch.randint(0, 3, (3,), generator=generator)
    elif labels and cls.endswith("MaskedImageModeling"):
        inputs["bool_masked_pos"] = torch.randint(0, 2, (3, 4), generator=generator).bool()
    return inputs


def labels_for(kind: str, draw: Any, mask: Tensor) -> dict[str, Tensor]:
    batch, length = mask.shape
    tokens = torch.where((mask == 1) & (draw(2, batch, length) == 1), draw(VOCAB, batch, length), -100)
    if kind in ("masked_lm", "counted_masked_lm", "causal_lm"):
        return {"labels": tokens}
    if kind in ("pretraining", "sentence_order_pretraining"):
        return {"labels": tokens, KINDS[kind].labels[1]: draw(2, batch)}
    if kind == "next_sentence":
        return {"labels": draw(2, batch)}
    if kind in ("sequence_classification", "inferred_classification"):
        return {"labels": draw(3, batch)}
    if kind == "multiple_choice":
        return {"labels": draw(CHOICES, batch)}
    if kind == "token_classification":
        return {"labels": torch.where(mask == 1, draw(3, batch, length), -100)}
    if kind in ("question_answering", "counted_question_answering"):
        return {"start_positions": draw(4, batch), "end_positions": torch.tensor([3, 30, 2])}  # 30: cut off
    assert kind == "replaced_token_detection", kind
    return {"labels": draw(2, batch, length)}


def layers_of(model: Any) -> list[Any]:
    """The layers of an encoder, in their order."""
    names = {family.layer for family in FAMILIES}
    return [module for module in model.modules() if type(module).__name__ in names]


def to_double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() if torch.is_tensor(t) and t.is_floating_point() else t for name, t in inputs.items()}


def double_of(model: nn.Module) -> Any:
    """The float64 reference: the unpatched model with transformers' eager attention.

    Where a mask of pairs hides a row of padding altogether, eager's mask in float64 is twice the lowest number:
    -inf, with a gradient of NaN. Such models take PyTorch's own attention.
    """
    reference = copy.deepcopy(model).double()
    overflows = type(model).__name__.startswith("ModernBert")
    reference.set_attn_implementation("sdpa" if overflows else "eager")
    return reference


def predictions(output: Any, mask: Tensor) -> dict[str, Tensor]:
    """The floating outputs by name, per-token ones at real tokens only."""
    found = {}
    for name, value in output.items():
        if name == "loss" or not torch.is_tensor(value):
            continue
        per_token = value.shape[:2] == mask.shape
        found[name] = value[mask.bool()] if per_token else value
    return found


def attention_of(model: Any) -> str:
    return model.config._attn_implementation


def stranger() -> Any:
    """A model of a family that fasttx does not know."""
    config = transformers.LayoutLMConfig(
        vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8
    )
    return transformers.LayoutLMModel(config)


def before(module: nn.Module, look: Any) -> None:
    """look(args) at each call of `module` until the test ends; a hook on the module itself would keep it padded."""

    def hook(found: nn.Module, args: Any) -> None:
        if found is module:
            look(args)

    WATCHES.append(register_module_forward_pre_hook(hook))


def after(module: nn.Module, change: Any) -> None:
    """`module` returns change(output) until the test ends."""
    WATCHES.append(register_module_forward_hook(lambda found, args, out: change(out) if found is module else None))
