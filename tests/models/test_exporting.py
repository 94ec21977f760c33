"""Exported programs hold PyTorch's operators alone where those compute: they load and run where fasttx is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.model_zoo import BY_NAME, FAMILIES, inputs_for, tiny_model
from models.test_pretrained import directory
from torch import Tensor

import fasttx

LAYERS = ("BERT", "DistilBERT", "ALBERT", "MPNet", "DeBERTa", "ModernBERT", "ViT")
KINDS: dict[str, Callable[[Any], Any]] = {
    "patched": fasttx.patch,
    "forced": lambda model: fasttx.patch(model, backend="torch"),
    "int8": fasttx.quantize,
    "int8, patched": lambda model: (fasttx.patch(model), fasttx.quantize(model)),
}
CASES = [
    *(("patched", family.name) for family in FAMILIES),
    *(("forced", name) for name in ("BERT", "DistilBERT", "ModernBERT") if BY_NAME[name] in FAMILIES),
    *(("int8", name) for name in LAYERS if BY_NAME[name] in FAMILIES),
    ("int8, patched", "BERT"),
]


def fasttx_ops_in(program: torch.export.ExportedProgram) -> set[str]:
    """The operators of fasttx in a program, graphs within graphs included."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return {str(node.target) for graph in graphs for node in graph.nodes if "fasttx" in str(node.target)}


def exported(kind: str, name: str) -> tuple[torch.export.ExportedProgram, dict[str, Tensor], Tensor]:
    """The program, a batch with padding, and the model's own answer."""
    family = BY_NAME[name]
    model = tiny_model(family, family.bare)
    KINDS[kind](model)
    inputs = inputs_for(family, family.bare, labels=False)
    with torch.no_grad():
        want = model(**inputs)[0]
    return torch.export.export(model, (), inputs, strict=False), inputs, want


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_a_program_holds_nothing_of_ours_and_gives_the_same(kind: str, name: str) -> None:
    program, inputs, want = exported(kind, name)
    assert not fasttx_ops_in(program)
    real = inputs["attention_mask"].bool() if "attention_mask" in inputs else slice(None)  # what a model means
    torch.testing.assert_close(program.module()(**inputs)[0][real], want[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in LAYERS if BY_NAME[name] in FAMILIES])
def test_a_program_takes_batches_of_other_shapes(name: str) -> None:
    """Where the user declares sizes as dynamic, nothing of ours makes constants of them."""
    family = BY_NAME[name]
    model, inputs = tiny_model(family, family.bare, return_dict=False), inputs_for(family, family.bare, labels=False)
    fasttx.patch(model)
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", min=2, max=32)}
    shapes = {key: sizes if tensor.dim() == 2 else {0: sizes[0]} for key, tensor in inputs.items()}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
    other = {key: tensor[:2, :5] if tensor.dim() == 2 else tensor[:2] for key, tensor in inputs.items()}
    assert any(other[key].shape != inputs[key].shape for key in inputs)
    with torch.no_grad():
        got, want = program.module()(**other)[0], model(**other)[0]
    real = other["attention_mask"].bool() if "attention_mask" in other else slice(None)
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-5)


ELSEWHERE = """
import sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fasttx", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import torch
from pathlib import Path
for path in sorted(Path(sys.argv[1]).glob("*.pt2")):
    inputs, want = torch.load(path.with_suffix(".pt"))
    got = torch.export.load(path).module()(**inputs)
    got = got[0] if isinstance(got, tuple) else next(iter(got.values()))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-5)
    print(path.stem)
assert not [n for n in sys.modules if n.split(".")[0] == "fasttx"]
"""


def test_saved_programs_run_in_a_process_without_fasttx(tmp_path: Path) -> None:
    """Nor do they need transformers: what is returned is a tuple."""
    cases = [("patched", "BERT"), ("int8", "BERT"), ("patched", "DistilBERT")]
    for kind, name in cases:
        family = BY_NAME[name]
        model = tiny_model(family, family.bare, return_dict=False)
        KINDS[kind](model)
        inputs = inputs_for(family, family.bare, labels=False)
        with torch.no_grad():
            want = model(**inputs)[0]
        torch.export.save(torch.export.export(model, (), inputs, strict=False), tmp_path / f"{kind}-{name}.pt2")
        torch.save((inputs, want), tmp_path / f"{kind}-{name}.pt")
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[:-1] == sorted(f"{kind}-{name}" for kind, name in cases)


def test_a_compiled_graph_keeps_the_operators() -> None:
    """torch.compile runs where fasttx is installed; a CPU gains by some of them."""
    model, seen = tiny_model(BY_NAME["BERT"], "BertModel"), []
    fasttx.quantize(model)

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend)(**inputs_for(BY_NAME["BERT"], "BertModel", labels=False))
    assert any("int8_linear" in target for target in seen)


class _Embedder(torch.nn.Module):
    """Hidden states of MiniLM as a tensor, for ONNX."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["patched", "int8", "int8, patched"])
def test_onnx_of_minilm_gives_what_the_model_gives(kind: str, tmp_path: Path) -> None:
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module)
    runtime = pytest.importorskip("onnxruntime")
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(directory()).eval()
    KINDS[kind](model)
    torch.manual_seed(0)
    ids = torch.randint(1000, 20000, (2, 9))
    mask = (torch.arange(9) < torch.tensor([9, 4])[:, None]).long()
    embedder = _Embedder(model)
    with torch.no_grad():
        want = embedder(ids, mask)
    path = tmp_path / "model.onnx"
    torch.onnx.export(embedder, (ids, mask), path, dynamo=True, input_names=["input_ids", "attention_mask"])
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    real = mask.bool()
    found, want = torch.from_numpy(got)[real], want[real]
    if kind == "patched":
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
        return
    # the last bit before a rounding decides an integer: the two differ by a part of what int8 differs from float
    floats = transformers.BertModel.from_pretrained(directory()).eval()
    with torch.no_grad():
        exact = _Embedder(floats)(ids, mask)[real]
    assert (found - want).norm() < 0.4 * (want - exact).norm()
    assert (found - exact).norm() < 1.1 * (want - exact).norm() < 0.15 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["patched", "int8"])
def test_ahead_of_time_inductor(kind: str, tmp_path: Path) -> None:
    program, inputs, want = exported(kind, "BERT")
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    got = torch._inductor.aoti_load_package(path)(**inputs)
    got = got[0] if isinstance(got, (tuple, list)) else next(iter(got.values()))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], rtol=1e-3, atol=1e-3)
