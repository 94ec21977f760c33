"""``fasttx.lora_on_int8``: PEFT's LoRA adapters on int8 layers, which stay as they are."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from ..nn.int8 import Int8Linear
from ..quant import int8_layers
from .patch import _root

INITS = (True, False, "gaussian")
"""Ways to begin that ask for no float weight."""


def lora_on_int8(model: Any, config: Any) -> Any:
    r"""Let PEFT put LoRA adapters on the int8 layers of a model.

    .. math:: y = Q(x)\, W_q^T + b + \frac{\alpha}{r}\, x A^T B^T

    ``peft.get_peft_model(model, fasttx.lora_on_int8(model, config))``, and to load adapters
    ``PeftModel.from_pretrained(model, folder, config=fasttx.lora_on_int8(model, PeftConfig.from_pretrained(folder)))``.
    A and B train; the integers stay. Gradients pass through int8 layers straight: they are those of the float layers
    that the integers stand for, as if inputs were not rounded. Adapters cannot be merged into integers: call
    :func:`fasttx.dequantize` first.

    Args:
        model: one that :func:`fasttx.quantize` changed, before PEFT gets it. From now on its int8
            layers pass gradients on.
        config: a ``peft.LoraConfig``, which is changed and returned.

    Returns:
        `config`.

    Raises:
        ValueError: `model` has no int8 layer; `config` asks for a start that computes with float weights (PiSSA, OLoRA,
            LoftQ, ...) or for DoRA.
        TypeError: `config` is no ``peft.LoraConfig``.
        ImportError: PEFT is not installed.

    Source: Hu et al., "LoRA: low-rank adaptation of large language models", 2021, section 4; Dettmers et al., "QLoRA:
    efficient finetuning of quantized LLMs", 2023, section 3; Bengio et al., "Estimating or propagating gradients
    through stochastic neurons for conditional computation", 2013 (straight-through).
    """
    import peft

    if not isinstance(config, peft.LoraConfig):
        raise TypeError(f"config: got {type(config).__name__}; allowed is a peft.LoraConfig")
    root = _root(model)
    layers = int8_layers(root)
    if not layers:
        raise ValueError(
            f"model: got a {type(root).__name__} without an int8 layer; allowed is one that fasttx.quantize changed"
        )
    if config.init_lora_weights not in INITS:
        allowed = "True, False and 'gaussian', which ask for no float weight"
        raise ValueError(f"config: got init_lora_weights={config.init_lora_weights!r}; allowed are {allowed}")
    if config.target_modules == "all-linear":
        allowed = "names of layers: PEFT finds float layers alone by that word"
        raise ValueError(f"config: got target_modules='all-linear'; allowed are {allowed}")
    if config.use_dora:
        raise ValueError("config: got use_dora=True; allowed is False, as DoRA computes with the float weight")
    config._register_custom_module({Int8Linear: int8_lora()})
    for layer in layers.values():
        layer.straight_through = True
    return config


@functools.cache
def int8_lora() -> type:
    """PEFT's LoRA layer around an :class:`~fasttx.nn.Int8Linear`."""
    from peft.tuners import lora

    class Int8LoraLinear(lora.Linear):
        def __init__(self, base_layer: Int8Linear, *args: Any, **kwargs: Any) -> None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Unsupported layer type")  # one that PEFT has not heard of
                super().__init__(base_layer, *args, **kwargs)

        def merge(self, *args: Any, **kwargs: Any) -> None:
            """Into a float layer: an int8 one has no room for an adapter."""
            if isinstance(self.get_base_layer(), Int8Linear):
                raise ValueError(
                    "merge: got an adapter on an int8 layer; allowed is one on a float layer: call "
                    "fasttx.dequantize(model) first"
                )
            super().merge(*args, **kwargs)

    return Int8LoraLinear
