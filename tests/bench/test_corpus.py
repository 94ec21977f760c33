"""The demo with a checkpoint or corpus that it cannot use: one line that names the file, exit code 2, no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

typer = pytest.importorskip("typer")
pytest.importorskip("rich")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

from demo_checkpoint import WORDS, small_checkpoint, small_corpus  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from fasttx.bench import corpus  # noqa: E402
from fasttx.cli import demo as demo_module  # noqa: E402
from fasttx.ops import backends  # noqa: E402

app = typer.Typer()
app.command()(demo_module.demo)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return small_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return small_corpus(tmp_path / "corpus.txt")


def run(checkpoint: Path, train: Path, out: Path, *more: str, dev: Path | None = None) -> tuple[int, str, str]:
    arguments = ["--tiny", "--model", str(checkpoint), "--train", str(train), "--dev", str(dev or train)]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), *more])
    return result.exit_code, result.stdout, result.stderr + repr(result.exception) * (result.exit_code == 1)


def refused(code: int, stdout: str, stderr: str) -> str:
    """The one line of a refusal, after the lines that tell how far the demo came."""
    assert code == 2, stderr
    assert stdout == ""
    (line,) = [line for line in stderr.splitlines() if "error:" in line]
    assert "Traceback" not in stderr
    return line


def test_a_small_checkpoint_runs(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    """Its positions are fewer than the demo's usual length."""
    code, _, stderr = run(checkpoint, texts, tmp_path / "out")
    assert code == 0, stderr
    assert (tmp_path / "out" / "loss.png").is_file()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[12:20] = b"!!!!!!!!"
    path.write_bytes(bytes(raw))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_tensors(path: Path) -> None:
    safetensors_torch.save_file({"x": torch.zeros(3)}, path, metadata={"format": "pt"})


def other_shape(path: Path) -> None:
    tensors = safetensors_torch.load_file(path)
    tensors["encoder.layer.0.output.dense.weight"] = torch.zeros(5, 5)
    safetensors_torch.save_file(tensors, path, metadata={"format": "pt"})


def one_missing(path: Path) -> None:
    tensors = safetensors_torch.load_file(path)
    del tensors["encoder.layer.0.output.dense.weight"]
    safetensors_torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (cut, "incomplete metadata"),
        (garble, "header"),
        (empty, "header too small"),
        (other_tensors, "has no weights for embeddings."),
        (one_missing, "has no weights for encoder.layer.0.output.dense.weight"),
        (other_shape, "encoder.layer.0.output.dense.weight"),
    ],
)
def test_weights(change: Callable[[Path], None], named: str, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    change(checkpoint / "model.safetensors")
    line = refused(*run(checkpoint, texts, tmp_path / "out"))
    assert f"{checkpoint}: model.safetensors" in line and named in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": 15}, "config.json: The hidden size (15) is not a multiple"),
        ({"hidden_size": "wide"}, "config.json: "),
        ({"num_hidden_layers": 2}, "has no weights for encoder.layer.1."),
    ],
)
def test_config(change: dict[str, object], named: str, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    assert named in refused(*run(checkpoint, texts, tmp_path / "out"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "vocab.txt: no [PAD], [UNK], [CLS], [SEP]"),
        (b"\xff\xfe\x00", "vocab.txt: not UTF-8"),
        ("\n".join([*WORDS, "more"]).encode(), "vocab.txt: 10 entries, more than the 9 of config.json's vocab_size"),
    ],
)
def test_vocabulary(content: bytes, named: str, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    (checkpoint / "vocab.txt").write_bytes(content)
    assert named in refused(*run(checkpoint, texts, tmp_path / "out"))


def test_an_entry_that_unicode_takes_for_a_line_end(checkpoint: Path) -> None:
    words = "\n".join([*WORDS[:-1], "\u2028x"]) + "\n"
    (checkpoint / "vocab.txt").write_text(words, encoding="utf-8", newline="")
    assert len(corpus.load_tokenizer(checkpoint)) == len(WORDS)


def test_changed_weights_of_the_package(
    checkpoint: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changed_weights").mkdir()
    (tmp_path / "changed_weights" / "__init__.py").write_text("", encoding="utf-8")
    checkpoint.rename(tmp_path / "changed_weights" / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(corpus, "WEIGHTS_PACKAGE", "changed_weights")
    result = CliRunner().invoke(app, ["--train", str(texts), "--dev", str(texts), "--out", str(tmp_path / "out")])
    line = refused(result.exit_code, result.stdout, result.stderr)
    assert "model.safetensors: sha256 " in line and "reinstall the package" in line


def test_byte_order_mark(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    """Some editors put one at the front of a file; it is no part of the first label."""
    marked = tmp_path / "marked.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + texts.read_bytes())
    assert corpus.read_corpus(marked) == corpus.read_corpus(texts)


def test_a_directory_as_corpus(checkpoint: Path, tmp_path: Path) -> None:
    assert f"{tmp_path}: a directory, not a file" in refused(*run(checkpoint, tmp_path, tmp_path / "out"))


def test_brackets_in_a_path_are_shown(checkpoint: Path, tmp_path: Path) -> None:
    """They are markup to the library that prints the line."""
    assert "[red]absent[/red].txt: no such file" in refused(
        *run(checkpoint, tmp_path / "[red]absent[" / "red].txt", tmp_path / "out")
    )


@pytest.mark.parametrize(("name", "named"), [("zz", "FASTTX_BACKEND: got 'zz'; allowed"), ("cuda", "backend 'cuda'")])
def test_a_backend_that_cannot_run(
    name: str, named: str, checkpoint: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_forced", name)  # read from FASTTX_BACKEND when fasttx is imported
    assert named in refused(*run(checkpoint, texts, tmp_path / "out"))


def test_out_that_is_a_file(checkpoint: Path, texts: Path) -> None:
    assert f"--out {texts}: a file, not a directory" in refused(*run(checkpoint, texts, texts))
