"""The programs of examples/ run as a newcomer starts them, without network, and reach what their last line promises."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

import make_notebooks
from models.test_pretrained import directory
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
NAMES = ("sentence-transformers/all-MiniLM-L6-v2", "bert-base-uncased", "distilbert/distilbert-base-uncased")
"""What the examples call their model: here a link to the local one."""


def falls(before: float, after: float, *_: float) -> bool:
    return after < 0.95 * before


PROMISES: dict[str, tuple[str, Callable[..., bool]]] = {
    "fine_tune": (r"loss of the epochs # -> # in # s; accuracy #", lambda b, a, s, right: falls(b, a) and right > 0.25),
    "trainer": (r"loss # -> # in # s; accuracy # -> #", lambda b, a, s, *right: falls(b, a) and right[0] < right[1]),
    "embeddings": (
        r"# texts in # s, unpatched in # s; smallest cosine between the two #",
        lambda n, ours, theirs, cosine: n == 32 and 0.99999 < cosine < 1.00001,
    ),
    "ner": (
        r"loss # -> #; F1 of the tokens of code # on # sentences",
        lambda before, after, f1, n: falls(before, after) and 0 < f1 <= 1 and n == 24,
    ),
    "int8": (
        r"layers # -> # MB, model # -> # MB; cosine to float32 #, at least #",
        lambda layers, less, model, smaller, mean, least: less < 0.3 * layers and smaller < model and least > 0.98,
    ),
    "pretrain": (r"loss of the epochs # -> # on # pairs", lambda before, after, n: falls(before, after) and n > 100),
    "vit": (
        r"loss # -> #; accuracy # on # new images",
        lambda before, after, right, n: falls(before, after) and right > 0.5 and n == 64,
    ),
    "speech": (
        r"loss # -> #; accuracy #; differs from sdpa by #",
        lambda before, after, right, difference: falls(before, after) and right > 0.75 and difference < 1e-4,
    ),
    "multi_label": (
        r"loss # -> #; the first guess of # labels is right for #",
        lambda before, after, n, right: falls(before, after) and n > 1 and 0 <= right <= 1,
    ),
    "recommend": (  # without learning ten of some hundred items would hit seldom
        r"the hidden import is one of ten guesses for # of # modules; one of the ten most popular for #",
        lambda right, n, popular: right > 0.75 * popular > 0.1 and n > 100,
    ),
    "translate": (
        r"loss of the epochs # -> #; # of # names are exact",
        lambda before, after, right, n: falls(before, after) and 0 <= right <= 1 and n == 4,
    ),
    "prune": (
        r"loss of the epochs # -> # with # of the layers' weights 0",
        lambda before, after, zeros: after < before and abs(zeros - 0.5) < 0.01,
    ),
    "splade": (
        r"loss of the epochs # -> #; # of the titles find their passage; # of # words have a weight",
        lambda before, after, found, words, vocabulary: falls(before, after) and found > 0.2 and words < vocabulary,
    ),
    "qa": (
        r"loss of the epochs # -> #; # of # answers are exact",
        lambda before, after, right, n: falls(before, after) and 0 <= right <= 1 and n > 5,
    ),
    "rerank": (
        r"loss of the epochs # -> #; the right text is first for # -> #",
        lambda before, after, *shares: falls(before, after) and all(0 <= share <= 1 for share in shares),
    ),
    "dialogue": (
        r"loss # -> #; the right reply of ten for # -> #",
        lambda before, after, start, end: falls(before, after) and 0.3 < end <= 1 and end >= start - 0.1,
    ),
    "distributed": (r"loss of the epochs # -> # in # processes", lambda b, a, n: falls(b, a) and n == 2),
    "accelerate_loop": (r"loss of the epochs # -> # in # process(es)", lambda b, a, n: falls(b, a) and n == 1),
    "distil": (
        r"teacher: loss # -> #, accuracy #; half the layers: loss # -> #, accuracy #",
        lambda *found: falls(*found[:2]) and found[4] < found[3],
    ),
}
"""Example -> the form of its last line, where # is a number, and what holds of the numbers."""
QUICK = {"fine_tune"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
AT_EXIT = "terminate called without an active exception"
"""What a busy machine's rank may say when its work is done: gloo's threads can outlive the interpreter, after
destroy_process_group too (https://github.com/pytorch/pytorch/pull/179291)."""
NO_CHECKPOINT = {"recommend"}
"""They make a model of their own, as nobody publishes one for the task."""
NEEDS = {"embeddings": ("sentence_transformers",), "trainer": ("accelerate",), "accelerate_loop": ("accelerate",)}


def run(name: str, folder: Path, *arguments: str) -> list[str]:
    """The lines that an example prints in `folder`, where the models' names are directories."""
    for model in NAMES:
        (folder / model).parent.mkdir(exist_ok=True)
        (folder / model).symlink_to(directory())
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "empty")}
    by = TORCHRUN if name == "distributed" else []
    path = EXAMPLES / f"{name}.py"
    command = [sys.executable, *by, str(path if path.exists() else EXAMPLES / name / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    at_exit = name == "distributed" and AT_EXIT in done.stderr
    assert done.returncode == 0 or at_exit and "Traceback" not in done.stderr.split(AT_EXIT)[0], done.stderr[-4000:]
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in PROMISES])
def test_an_example_reaches_what_it_promises(name: str, tmp_path: Path) -> None:
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module)
    form, holds = PROMISES[name]
    last = run(name, tmp_path, "--tiny")[-1]
    match = re.fullmatch(re.escape(form).replace(r"\#", r"(-?\d[\d.e+-]*)"), last)
    assert match, last
    assert holds(*map(float, match.groups())), last


@pytest.mark.slow
def test_the_distributed_example_shards(tmp_path: Path) -> None:
    last = run("distributed", tmp_path, "--tiny", "--fsdp")[-1]
    before, after, world = map(float, re.findall(r"\d[\d.]*", last))
    assert falls(before, after) and world == 2


@pytest.mark.slow
def test_compression_shrinks_a_classifier_and_says_so(tmp_path: Path) -> None:
    """Each step's row in what is printed and in the model card; the saved model has the zeros, as integers."""
    rows = [line.strip("| ").split(" | ") for line in run("compress", tmp_path, "small", "--tiny")]
    assert [row[0] for row in rows] == ["teacher", "distil", "prune", "int8"]
    size, packed, speed, right = (list(map(float, column)) for column in list(zip(*rows))[1:])
    assert size[0] > size[1] == size[2] > size[3]
    assert all(more > less for more, less in zip(packed, packed[1:]))
    assert speed[1] > 1.2 * speed[0] and all(0 <= share <= 1 for share in right)
    card = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert all(f"| {' | '.join(row)} |" in card for row in rows) and "`import fasttx.models` before" in card
    layers = load_file(tmp_path / "small" / "model.safetensors")
    weights = [t for name, t in layers.items() if ".layer." in name and t.dim() == 3]
    assert len(weights) == 3 * 6 and all(float((w == 0).float().mean()) > 0.499 for w in weights)
    config = json.loads((tmp_path / "small" / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 3 and config["id2label"]["0"] == "debugger"


@pytest.mark.slow
def test_a_wrong_step_of_compression_is_refused(tmp_path: Path) -> None:
    """In any other order a step would undo the one before, or fail: an int8 layer has no gradient."""
    command = [sys.executable, str(EXAMPLES / "compress" / "compress.py"), "small", "--steps", "int8,prune"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert "--steps: got int8,prune; allowed are some of distil,prune,int8, in this order" in done.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_can_be_copied(path: Path) -> None:
    """It is short, says what it does, uses fasttx, needs no file beside it but the data, and is run by the tests."""
    text = path.read_text(encoding="utf-8")
    assert path.stem in PROMISES
    assert len(text.splitlines()) < 60
    assert re.match(r'"""[^"\n]+\."""\n', text)
    assert re.search(r"fasttx\.(patch|quantize)\(|set_attn_implementation\(\"fasttx\"\)|fasttx\.nn", text)
    options = set(re.findall(r'add_argument\("(--\w+)"', text))
    assert {"--tiny", "--model"} - {"--model" if path.stem in NO_CHECKPOINT else ""} <= options
    assert not {other.stem for other in EXAMPLES.glob("*.py")} & set(re.findall(r"^(?:import|from) (\w+)", text, re.M))


def test_the_table_has_each_example() -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \| .+ \| `(.+)` \|$", table, re.M)
    assert sorted(name for name, _ in rows) == sorted(path.stem for path in EXAMPLES.glob("*.py"))
    for name, command in rows:
        assert f"examples/{name}.py" in command
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert all(f'"{option}"' in text for option in re.findall(r" (--\w[\w-]*)", command.split(".py", 1)[1]))


@pytest.mark.parametrize("name", make_notebooks.NAMES)
def test_a_notebook_is_the_example(name: str) -> None:
    """Written anew by tests/scripts/make_notebooks.py; its code, one cell after another, is a program."""
    written = (EXAMPLES / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert written == make_notebooks.notebook(name)
    code = ["".join(cell["source"]) for cell in json.loads(written)["cells"] if cell["cell_type"] == "code"]
    program = "\n".join(code)
    ast.parse(program)
    assert len(code) > 3 and "__file__" not in program and "parse_args([])" in program
    assert all(ast.parse(part) for part in code)
