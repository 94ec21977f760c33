"""int8 models on disk: ``save_pretrained`` writes them, ``from_pretrained`` reads them once fasttx.models is imported.

What stands in a file, for each int8 layer, in place of a float layer's ``weight`` (out, in):

    weight         int8 (out, 1, in)      a shape that no float layer takes: without fasttx the load ends in an error
    weight_scale   int32 (out,)           the bits of the float32 scales, which no dtype of the model rounds
    input_scale    int32 ()               likewise, where one was found by a calibration
    input_factor   int32 (in,)            likewise, where the layer is smoothed

and once a model ``fasttx_int8.import_fasttx_models_before_from_pretrained``, for the report of such an error. The
names of the layers stand in the config, relative to the bare model, so that another head finds them too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..nn.int8 import OF_INPUT, Int8Linear
from ..ops.checks import wrong
from ..quant import Int8Config, int8_layers, replace_layers

METHOD = "fasttx_int8"
FORMAT = 1
NOTE = "fasttx_int8.import_fasttx_models_before_from_pretrained"
MARK = "hf_quantizer"
"""The attribute by which transformers knows a quantised model: with a stranger there it refuses to save."""


@register_quantization_config(METHOD)
class Int8OnDisk(QuantizationConfigMixin):
    """What a config.json says of a model that :func:`fasttx.quantize` changed.

    Args:
        layers: the int8 layers, by their names in the bare model.
        static: those of them that have an ``input_scale``.
        smoothed: those that have an ``input_factor``.
        made_by: the fields of the :class:`fasttx.Int8Config` that made them, for whoever reads it.
        format: of the tensors; 1.
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        static: list[str] | None = None,
        smoothed: list[str] | None = None,
        made_by: dict[str, Any] | None = None,
        format: int = FORMAT,
        **_: Any,
    ) -> None:
        self.quant_method = METHOD
        self.format, self.layers = format, sorted(layers or [])
        self.static, self.smoothed = sorted(static or []), sorted(smoothed or [])
        self.made_by = dict(made_by or {})


def mark(root: nn.Module, config: Int8Config | None = None) -> None:
    """Tells the transformers models in `root` which of their layers are int8, and takes the mark off the others.

    Args:
        config: what made them so.
    """
    for module in root.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        if int8_layers(module):
            quantizer = module.__dict__.setdefault(MARK, Int8Quantizer(Int8OnDisk()))
            if config is not None and isinstance(quantizer, Int8Quantizer):
                quantizer.quantization_config.made_by = {**vars(config), "skip": list(config.skip)}
        elif isinstance(module.__dict__.get(MARK), Int8Quantizer):
            del module.__dict__[MARK]
            if isinstance(getattr(module.config, "quantization_config", None), Int8OnDisk):
                del module.config.quantization_config


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """What transformers asks about a quantised model, and what it calls to save one and to load one.

    ``Trainer`` may evaluate and predict with it, and train what stands behind its encoder; a gradient that would have
    to go through an int8 layer fails in backward, which says why.
    """

    requires_calibration = False
    is_trainable = False
    is_qat_trainable = False
    is_compileable = True

    def __init__(self, quantization_config: Any, pre_quantized: bool = False, **_: Any) -> None:
        self.quantization_config, self.pre_quantized = quantization_config, pre_quantized
        self._dtype: torch.dtype | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}

    # ---------------------------------------------------------------------------------------------------------- saving

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: Any, *args: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state dictionary as it stands in a file; the config, saved next, says which layers it is of.

        It says so from now on, and not before: a float model may have been made of the same config.
        """
        layers, state = list(int8_layers(model)), model.state_dict()
        bare = model.base_model
        named = list(int8_layers(bare))
        if len(named) != len(layers):
            beside = f"int8 layers beside its {type(bare).__name__}"
            raise ValueError(wrong("model", f"a {type(model).__name__} with {beside}", "one with all of them inside"))
        if not layers:  # a part of it was made float by itself
            if isinstance(getattr(model.config, "quantization_config", None), Int8OnDisk):
                del model.config.quantization_config
            return state, {}
        own = int8_layers(bare).items()
        saved = Int8OnDisk(
            named,
            static=[name for name, layer in own if layer.input_scale is not None],
            smoothed=[name for name, layer in own if layer.input_factor is not None],
            made_by=self.quantization_config.made_by,
        )
        self.quantization_config = model.config.quantization_config = saved
        state[NOTE] = torch.tensor([FORMAT], dtype=torch.int8)
        return state, {}

    # --------------------------------------------------------------------------------------------------------- loading

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise ValueError(
                wrong("quantization_config", METHOD, "it in a config.json alone: call fasttx.quantize after loading")
            )
        if self.quantization_config.format != FORMAT:
            raise ValueError(
                wrong("format", self.quantization_config.format, f"{FORMAT}: a newer fasttx saved this model")
            )

    def update_dtype(self, dtype: Any) -> Any:
        """Notes the dtype that is asked for: what comes from under another name, transformers loads in the file's."""
        self._dtype = dtype
        return dtype

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """int8 layers in place of the float ones."""
        found: dict[nn.Module, nn.Module] = {}
        bare = model.base_model
        for name in self.quantization_config.layers:
            linear = dict(bare.named_modules()).get(name)
            if not isinstance(linear, nn.Linear):
                what = "no such module" if linear is None else f"a {type(linear).__name__}"
                raise ValueError(
                    wrong(
                        "quantization_config",
                        f"the layer {name}, of which a {type(bare).__name__} has {what}",
                        "a Linear's name",
                    )
                )
            made = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
            if linear.bias is not None:
                made.bias = nn.Parameter(linear.bias.detach(), requires_grad=linear.bias.requires_grad)
            if name in self.quantization_config.static:
                made.input_scale = torch.ones((), dtype=torch.float32, device="meta")
            if name in self.quantization_config.smoothed:
                made.input_factor = torch.ones(linear.in_features, dtype=torch.float32, device="meta")
            found[linear] = made.train(linear.training)
        replace_layers(model, found)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        before = model._keys_to_ignore_on_load_unexpected
        kind = set if isinstance(before, set) else list
        model._keys_to_ignore_on_load_unexpected = kind([*(before or ()), f"^{NOTE}$"])
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """The tensors as the layers compute with them, and the model as :func:`fasttx.quantize` leaves one."""
        # transformers checks no shape where a quantizer is, and would cut floats down to integers
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            wanted = self._shapes.get(name)
            if wanted is not None and tuple(tensor.shape) != wanted:
                given = f"{name} of {tuple(tensor.shape)}"
                raise ValueError(wrong("the checkpoint", given, f"{wanted}, which the config or an argument asks for"))
        lost = []
        for name, layer in int8_layers(model).items():
            if all(getattr(tensor, "_is_hf_initialized", False) for tensor in layer.buffers(recurse=False)):
                layer.weight = layer.weight[:, 0]
                layer.weight_scale = layer.weight_scale.view(torch.float32)
                for own in OF_INPUT:
                    bits = getattr(layer, own)
                    if bits is not None:
                        setattr(layer, own, bits.view(torch.float32))
            else:
                lost.append(name)
        if lost:
            given = f"no int8 weights of {', '.join(lost)}"
            raise ValueError(wrong("the checkpoint", given, "the tensors of every layer that its config names"))
        for attribute in ("is_quantized", "quantization_method"):  # by which Trainer refuses to evaluate
            model.__dict__.pop(attribute, None)
        mark(model)
        for name, parameter in model.named_parameters() if self._dtype is not None else ():
            kept = any(part in name for part in (getattr(model, "_keep_in_fp32_modules", None) or ()))
            if parameter.is_floating_point() and not parameter.is_meta and not kept:
                parameter.data = parameter.data.to(self._dtype)
        return model

    # ------------------------------------------------------------------------------------------------------------ back

    def dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """``model.dequantize()`` is :func:`fasttx.dequantize`, followed by a cast where a dtype is asked for."""
        from .quantize import dequantize

        dequantize(model)
        return model if dtype is None else model.to(dtype)
