"""A transformers encoder exported to ONNX on the spot, and answered by the runtimes that people serve it with."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Run = Callable[[Batch], Tensor]


class _Outputs(nn.Module):
    """The tensor that an answer is made of, with the batch's arguments in a fixed order."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *arguments: Tensor) -> Tensor:
        output = self.model(**dict(zip(self.names, arguments, strict=True)))
        found: Tensor = output["logits"] if "logits" in output else output["last_hidden_state"]
        return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of exporters and quantisers on themselves; errors are raised as ever."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def exported(base: nn.Module, batch: Batch) -> Iterator[Path]:
    """The unpatched model as a file of ONNX, for batches of any size; `batch` tells the names of its arguments.

    Raises:
        ModuleNotFoundError: onnxscript, which PyTorch's exporter needs, is not installed.
    """
    import onnxscript  # noqa: F401  # the exporter's own requirement: named here, it is what is reported as missing

    sizes = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=8192)}
    wrapped = _Outputs(copy.deepcopy(base), list(batch)).eval()
    rows = {name: torch.cat([value, value]) for name, value in batch.items()}  # a batch of one would be a constant
    with torch.no_grad(), tempfile.TemporaryDirectory() as place, _quiet():
        program = torch.onnx.export(
            wrapped,
            tuple(rows.values()),
            dynamo=True,
            dynamic_shapes=(tuple(sizes for _ in batch),),
            verbose=False,
        )
        path = Path(place) / "model.onnx"
        program.save(path)  # type: ignore[union-attr]
        yield path


def onnx_runtime(base: nn.Module, batch: Batch, *, int8: bool = False) -> Run:
    """ONNX Runtime with as many threads as PyTorch has; `int8` by its dynamic quantisation, a scale a channel."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with exported(base, batch) as path:
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantised = path.with_name("int8.onnx")
            quantize_dynamic(path, quantised, per_channel=True, weight_type=QuantType.QInt8)
            path = quantised
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds, names = [given.name for given in session.get_inputs()], list(batch)

    def run(batch: Batch) -> Tensor:
        given = {feed: batch[name].numpy() for feed, name in zip(feeds, names, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def openvino(base: nn.Module, batch: Batch, *, precision: str | None = "f32") -> Run:
    """OpenVINO with as many threads as PyTorch has; `precision` None leaves it to OpenVINO, which may take bf16."""
    import openvino as runtime

    core: Any = runtime.Core()
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    with exported(base, batch) as path:
        compiled = core.compile_model(core.read_model(path), "CPU", options)
    names = list(batch)

    def run(batch: Batch) -> Tensor:
        found = compiled([batch[name].numpy() for name in names])
        return torch.from_numpy(found[0].copy())  # the next call writes over it

    return run
