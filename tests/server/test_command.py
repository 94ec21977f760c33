"""The server's command: errors of one message, a container file that names what exists, a load test that ends well."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models.test_pretrained import directory
from serving import ServedModel, serve

import fasttx

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "examples" / "serve"


def error(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command ends with, with code 2."""
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    try:
        code: Any = serve.main()
    except SystemExit as ended:  # argparse's, whose usage stands before it
        code = ended.code
    *usage, line = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and (not usage or usage[0].startswith("usage:"))
    return line


def copied(folder: Path, **changes: str | None) -> Path:
    """MiniLM's folder with other files: their text, or None for no such file."""
    shutil.copytree(directory(), folder, dirs_exist_ok=True, symlinks=True)
    for name, text in changes.items():
        for path in folder.rglob(name.replace("__", ".")):
            path.unlink()
            if text is not None:
                path.write_text(text, encoding="utf-8")
    return folder


DENSE = json.dumps([{"path": "", "type": "x.Transformer"}, {"path": "2", "type": "x.Dense"}])
NO_FAMILY = json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 30522})


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"config__json": None}, [], "DIR: got {dir}, which has no config.json; allowed is the folder of a saved"),
        ({"config__json": "{"}, [], "DIR: got {dir}, which cannot be loaded: It looks like the config file"),
        ({"model__safetensors": None}, [], "DIR: got {dir}, which cannot be loaded: Error no file named model.safeten"),
        ({"tokenizer__json": None, "vocab__txt": None}, [], "DIR: got {dir}, which cannot be loaded: it has no tokeni"),
        ({"modules__json": DENSE}, [], "{dir}/modules.json: got Dense; allowed is Transformer, Pooling, Normalize"),
        (
            {},
            ["--task", "rerank"],
            "--task: got rerank for BertModel; allowed is embed, or a ...ForSequenceClassificat",
        ),
        ({}, ["--max-tokens", "600"], "--max-tokens: got 600; allowed is 3 to 512, the model's positions"),
    ],
)
def test_a_folder_that_cannot_be_served(
    changes: dict[str, str | None],
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copied(tmp_path, **changes)
    assert error([str(folder), "--port", "0", *arguments], monkeypatch, capsys).startswith(
        f"serve: {said.format(dir=folder)}"
    )


def test_a_family_that_fasttx_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    folder = copied(tmp_path, model__safetensors=None)
    transformers.GPT2Model(transformers.GPT2Config(**json.loads(NO_FAMILY))).save_pretrained(folder)
    capsys.readouterr()
    line = error([str(folder), "--port", "0"], monkeypatch, capsys)
    assert line == "serve: DIR: got GPT2Model, of which fasttx replaces nothing; --unpatched serves it"
    line = error([str(folder), "--port", "0", "--unpatched", "--int8"], monkeypatch, capsys)
    assert line.startswith("serve: --int8: model: got GPT2Model, without an encoder layer")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.MPNetModel(transformers.MPNetConfig(**shape, vocab_size=30522)).save_pretrained(folder)
    capsys.readouterr()
    line = error([str(folder), "--port", "0", "--capture"], monkeypatch, capsys)
    assert line.startswith("serve: --capture: model: got MPNetModel; allowed is one whose encoder can be frozen")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/no/such"], "serve: DIR: got /no/such, which is no folder; allowed is the folder of a saved transformers"),
        ([".", "--wait-ms", "-1"], "serve.py: error: --wait-ms: got -1.0; allowed is 0 or more"),
        ([".", "--tokenisers", "0"], "serve.py: error: --tokenisers: got 0; allowed is 1 or more"),
        ([".", "--queue", "10"], "serve.py: error: --queue: got 10; allowed is 2000 or more, as of --max-texts"),
        ([".", "--unpatched", "--capture"], "serve.py: error: --capture: got it with --unpatched; allowed is one of"),
        ([".", "--task", "dance"], "serve.py: error: argument --task: invalid choice: 'dance'"),
    ],
)
def test_options_that_are_wrong(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error([*arguments, "--port", "0"], monkeypatch, capsys).startswith(said)


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error([str(directory()), "--port", str(port)], monkeypatch, capsys)
    assert re.match(rf"serve: --host, --port: got 127.0.0.1, {port}: .*[Aa]ddress.* in use", line)


def test_a_model_without_limits_of_its_own_is_cut_at_its_positions(tmp_path: Path) -> None:
    model = ServedModel(copied(tmp_path, sentence_bert_config__json=None, modules__json=None))
    assert (model.max_tokens, model.pooling, model.normalise) == (512, "mean", True)
    assert model(model.tokenise(["a " * 1000])).shape == (1, 384)


@pytest.mark.parametrize("pooling", ["cls", "max", "mean"])
def test_the_pooling_is_that_of_the_folder(tmp_path: Path, pooling: str) -> None:
    """In the files of sentence-transformers 5 and before it, as sentence-transformers computes it."""
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    found = []
    for form in (
        {"pooling_mode": pooling},
        {f"pooling_mode_{pooling}_{'token' if pooling == 'cls' else 'tokens'}": True},
    ):
        folder = copied(tmp_path)
        options = folder / "1_Pooling" / "config.json"
        options.write_text(json.dumps({"word_embedding_dimension": 384} | form), encoding="utf-8")
        model = ServedModel(folder, patched=False)
        found.append(model(model.tokenise(["A text.", "One that is longer than it."])))
        assert model.pooling == pooling
    want = library.SentenceTransformer(str(folder)).encode(["A text.", "One that is longer than it."])
    assert abs(found[0] - want).max() < 1e-5 and (found[0] == found[1]).all()


def test_the_container_file_names_what_exists() -> None:
    lines = (HERE / "Containerfile").read_text(encoding="utf-8").splitlines()
    copies = [shlex.split(line) for line in lines if line.startswith("COPY")]
    copied_paths = [path for _, *paths, _ in copies if "--from=build" not in paths for path in paths]
    assert len(copied_paths) > 8 and all((ROOT / path).exists() for path in copied_paths)
    needed = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "buildsystem", "csrc", "fasttx", "kernels", "bench"]
    assert set(needed) <= set(copied_paths)
    assert "[serve]" in "".join(lines) and re.search(r"^serve = ", (ROOT / "pyproject.toml").read_text(), re.M)
    (entry,) = [json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT")]
    assert entry[:3] == ["python", "/serve/serve.py", "/model"]
    options = re.findall(r'"(--[\w-]+)"', (HERE / "serve.py").read_text(encoding="utf-8"))
    assert {word for word in entry if word.startswith("--")} <= set(options)


def test_the_page_names_the_options_and_endpoints_that_there_are() -> None:
    page = (ROOT / "docs" / "start" / "serve_cpu.md").read_text(encoding="utf-8")
    section = page.split("## A server\n", 1)[1].split("\n## ", 1)[0]
    program = (HERE / "serve.py").read_text() + (HERE / "load.py").read_text()
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", section))
    assert named and all(f'"{option}"' in program for option in named)
    paths = set(re.findall(r"`(?:POST|GET) (/[\w/]+)`", section))
    assert paths == set(re.findall(r'"(/[\w/]+)"(?:: \(|, self)', (HERE / "app.py").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_load_test_answers_all_and_skips_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of six texts, one of them long: two thirds and more of a batch is padding, whatever it is made of."""
    monkeypatch.setenv("PYTHONPATH", str(Path(fasttx.__file__).parents[1]))
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["a few words"] * 5 + ["many more words " * 35]), encoding="utf-8")
    command = [sys.executable, str(HERE / "load.py"), str(directory()), "--tiny", "--texts", str(texts)]
    command += ["--request-texts", "6", "--clients", "4", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "96 requests, 96 answered"
    alike = re.search(r"^smallest cosine between vectors of the first server and another: ([\d.]+)$", done.stdout, re.M)
    assert alike and 0.9999 < float(alike[1]) < 1.0001
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["fasttx", "fasttx, captured", "unpatched", "unpatched, each text alone"]
    seconds = [float(row[4]) for row in rows]
    assert max(seconds[:2]) < seconds[2]  # of the process, not of the clock
    assert all(float(cell) > 0 for row in rows for cell in row[1:4])
    assert rows[3][5] == "100%" and int(rows[0][5].rstrip("%")) < 60
