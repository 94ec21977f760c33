"""Options that a patch has to pass on, and what the check at first use has to see and to tell dispatch."""

from __future__ import annotations

from mutation import Mutation

PADDING = ("tests/models/test_padding_free.py", "tests/models/test_padding_kept.py")
WHOLE = ("tests/models/test_whole_models.py",)
NORM = ("tests/models/test_residual_norm.py",)
FIRST_USE = ("tests/trust/test_first_use.py", "-k", "what_becomes")
LATER = ("tests/trust/test_later.py",)
SURROUNDINGS = ("tests/trust/test_surroundings.py",)
CAPTURE = ("tests/models/test_capture.py", "tests/models/test_capture_kept.py")
DISTILLATION = ("tests/nn/test_distillation.py",)
SAVED_INT8 = ("tests/models/test_saved_int8.py", "-k", "not process")
REPETITION = ("tests/models/test_repetition.py", "-k", "exception")
PRUNE = ("tests/models/test_prune.py", "tests/models/test_prune_kept.py")
INT8_LORA = ("tests/models/test_int8_lora.py",)
CALIBRATE = ("tests/models/test_calibrate.py",)
CAPTURE_INT8 = ("tests/models/test_capture_int8.py",)
MODELS = [
    Mutation("fasttx/models/all_or_nothing.py", "            module.__class__ = cls\n", "", REPETITION),
    Mutation("fasttx/models/all_or_nothing.py", "                own.update(before)\n", "", REPETITION),
    Mutation("fasttx/models/masks.py", "local.view(bits).bitwise_and_(self._kept[1])", "local.mul_(~pruned)", PRUNE),
    Mutation(
        "fasttx/models/masks.py", 'self._belong_to(state["layer"])', 'self._layer = lambda: state["layer"]', PRUNE
    ),
    Mutation("fasttx/models/prune.py", ".masked_fill_(before, -1)", "", PRUNE),
    Mutation("fasttx/models/capture/frozen.py", "scale=float(attention.scaling)", "scale=1.0", CAPTURE),
    Mutation("fasttx/models/capture/frozen.py", "                or parameter._version != version\n", "", CAPTURE),
    Mutation("fasttx/models/capture/frozen.py", "                or parameter.data_ptr() != address\n", "", CAPTURE),
    Mutation(
        "fasttx/models/capture/frozen.py", "bias = as_bias(mask, (", "bias = as_bias(mask.fill_(True), (", CAPTURE
    ),
    Mutation("fasttx/models/capture/products.py", 'self.bias, "add")', 'self.bias, "sub")', CAPTURE),
    Mutation("fasttx/models/capture/capture.py", " or self._layers.trains:", ":", CAPTURE),
    Mutation(
        "fasttx/models/capture/frozen.py", "found.permute(2, 0, 3, 1, 4)", "found.permute(2, 3, 0, 1, 4)", CAPTURE
    ),
    Mutation("fasttx/ops/cpu/direct.py", "        or dispatch.around\n", "", CAPTURE_INT8),
    Mutation("fasttx/ops/cpu/direct.py", "        or not x.is_contiguous()\n", "", CAPTURE_INT8),
    Mutation(
        "fasttx/ops/cpu/direct.py", "self.n_out, _NUMBERS[activation]", "n_in, _NUMBERS[activation]", CAPTURE_INT8
    ),
    Mutation(
        "fasttx/ops/cpu/direct.py",
        "*at(weight), *at(bias), address",
        "*at(bias), *at(weight), address",
        CAPTURE_INT8,
    ),
    Mutation("fasttx/models/capture/products.py", "if twice else out", "if False else out", CALIBRATE),
    Mutation("fasttx/models/capture/products.py", "read = x * self._factor.to(x.dtype)", "read = x", CALIBRATE),
    Mutation("fasttx/models/lora.py", "layer.straight_through = True", "pass", INT8_LORA),
    Mutation(
        "fasttx/functional/_int8_linear.py",
        "weight = weight if factor is None else weight * factor",
        "weight = weight",
        INT8_LORA,
    ),
    Mutation("fasttx/models/folded.py", "or len(int8) < len(linears) ", "", CALIBRATE),
    Mutation("fasttx/models/folded.py", "if parameter is not None:", 'if name == "weight":', CALIBRATE),
    Mutation("fasttx/models/folded.py", " or places[id(norm)] > 1", "", CALIBRATE),
    Mutation("fasttx/models/calibrate.py", "rows = rows[self._mask.bool()]", "pass", CALIBRATE),
    Mutation("fasttx/quant/seen.py", "alpha * x.log2() - (1", "alpha * x.log2() + (1", CALIBRATE),
    Mutation("fasttx/models/capture/frozen.py", "following.qkv.wanted if", "(False,) if", CAPTURE_INT8),
    Mutation(
        "fasttx/models/saved_int8.py",
        "layer.weight_scale = layer.weight_scale.view(torch.float32)",
        "layer.weight_scale = layer.weight_scale.float()",
        SAVED_INT8,
    ),
    Mutation("fasttx/functional/_distillation.py", "sum(-1) * temperature**2", "sum(-1) * temperature", DISTILLATION),
    Mutation("fasttx/functional/_distillation.py", "s.softmax(-1) - labelled", "s.softmax(-1)", DISTILLATION),
    Mutation("fasttx/functional/_distillation.py", "found[rows] = gradient(rows)", "found[rows] = 0.0", DISTILLATION),
    Mutation("fasttx/models/saved_int8.py", "parameter.data = parameter.data.to(self._dtype)", "pass", SAVED_INT8),
    Mutation(
        "fasttx/models/padding/decision.py",
        "        and mask.shape == hidden.shape[:2]\n        and not graph_in",
        "        and not graph_in",
        PADDING,
    ),
    Mutation(
        "fasttx/models/padding/decision.py",
        "        and not graph_in_the_making(hidden)\n        and bool(mask.all())",
        "        and bool(mask.all())",
        PADDING,
    ),
    Mutation("fasttx/models/padding/whole.py", "(layout.indices % seqlen)[None]", "layout.indices[None]", WHOLE),
    Mutation("fasttx/models/padding/whole.py", " | starts_of(layout)", "", WHOLE),
    Mutation(
        "fasttx/models/trainer.py", "real = mask.count_nonzero()", "pass", ("tests/models/test_trainer_callback.py",)
    ),
    Mutation("fasttx/models/trainer.py", "and not kind.honours", "", ("tests/models/test_trainer_callback.py",)),
    Mutation(
        "fasttx/models/fusions/mlp.py",
        "approximate = APPROXIMATE[type(self._modules[activation]).__name__]",
        'approximate = "none"',
        ("tests/models/test_mlp.py",),
    ),
    Mutation(
        "fasttx/models/fusions/residual_norm.py",
        "eps, backend = getattr(norm, self.eps), patch",
        "eps, backend = 1e-5, patch",
        NORM,
    ),
    Mutation(
        "fasttx/models/fusions/residual_norm.py",
        "p = dropout.p if dropout.training else 0.0",
        "p = 0.0",
        NORM,
    ),
    Mutation(
        "fasttx/models/fusions/embeddings.py",
        "            self.LayerNorm.eps,\n",
        "            1e-5,\n",
        ("tests/models/test_embeddings.py",),
    ),
    Mutation("fasttx/models/fusions/fusion.py", 'if backend == "torch":', 'if backend == "none":', NORM),
    Mutation(
        "fasttx/models/fusions/fusion.py",
        "return unsupported_reason(x, weight, bias)",
        "return None",
        NORM,
    ),
    Mutation("fasttx/ops/registry.py", "if why is None and auto:", "if False:", FIRST_USE),
    Mutation("fasttx/cli/judge.py", "    with poisoned_outputs():\n", "    if True:\n", FIRST_USE),
    Mutation("fasttx/cli/check.py", 'RuntimeError) and "C compiler" in', "RuntimeError) and not", FIRST_USE),
    Mutation("fasttx/trust/later.py", "            model.ask(device)\n", "            pass\n", LATER),
    Mutation("fasttx/trust/later.py", " or first_use.being_recorded(device) is not None", "", LATER),
    Mutation("fasttx/ops/dispatch.py", "elif knew.get(op.name, verdicts.generation) ==", "elif True or", SURROUNDINGS),
    Mutation("fasttx/ops/verdicts.py", '{name}{user}.json"', '{name}.json"', SURROUNDINGS),
]
