"""bench, plot and verify as a person calls them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("typer", reason="typer is not installed: the command line needs fasttx[cli]")
pytest.importorskip("rich", reason="rich is not installed: the command line needs fasttx[cli]")

from cli.test_commands import invoke
from rich.console import Console
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

import fasttx
from fasttx.bench import padding, plots
from fasttx.cli import bench
from fasttx.cli.bench import bar
from fasttx.models.padding import decision
from fasttx.models.padding import encoder as padding_free

# -------------------------------------------------------------------------------------------------------------- bench


def test_bench_help_and_wrong_options() -> None:
    text = invoke("bench", "--help")
    assert all(name in text for name in ("kernels", "model", "serving", "host", "padding"))
    assert "--quick" in invoke("bench", "kernels", "--help")
    assert "not one of" in invoke("bench", "nothing", code=2)
    invoke("bench", "kernels", "--backend", "triton", "--device", "cpu", code=2)
    invoke("bench", "kernels", "--no-such-option", code=2)


def test_bench_shows_a_bar_and_the_name_of_what_runs() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    assert list(bar("bench x", console)([1, 2], name=lambda i: f"item {i}" + " of many words" * 9)) == [1, 2]
    assert "bench x: item 2" in out.getvalue() and "2/2" in out.getvalue() and "left" in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_bench_draws_its_bar_in_a_terminal_and_no_bar_elsewhere(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere the benchmark itself writes a line for each part."""
    out = io.StringIO()
    monkeypatch.setattr(bench, "Console", lambda **_: Console(file=out, force_terminal=terminal, width=80))
    given: list[Any] = []
    monkeypatch.setattr(padding, "main", lambda arguments, watch: given.extend([arguments, watch]) or 0)
    invoke("bench", "padding", "--quick")
    arguments, watch = given
    assert arguments == ["--quick"] and (watch is not None) == terminal
    if terminal:
        assert list(watch([1, 2])) == [1, 2] and "bench padding" in out.getvalue() and "2/2" in out.getvalue()


def test_bench_kernels_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "kernels.csv"
    text = invoke("bench", "kernels", "--only", "softmax-65536", "--quick", "--device", "cpu", "--out", str(out))
    assert "softmax-65536x256-fp32" in text
    with out.open() as file:
        rows = list(csv.DictReader(file))
    timed = [row for row in rows if row["median_ms"]]
    assert {(row["peer"], row["direction"]) for row in timed} == {
        (peer, direction) for peer in ("fasttx[torch]", "eager", "device copy") for direction in ("fwd", "bwd")
    }
    assert {row["peer"] for row in rows if row["status"].startswith(("not run", "unavailable"))} == {
        "torch.compile",
        "liger",
    }
    for row in timed:
        assert row["status"] == "ok" and row["size"] == "check" and float(row["median_ms"]) > 0
        assert row["torch"] == version("torch") and row["commit"] and row["liger-kernel"]
    fasttx_rows = [row for row in rows if row["peer"] == "fasttx[torch]"]
    assert all(float(row["error"]) <= float(row["allowed"]) for row in fasttx_rows)


def test_bench_kernels_compares_no_random_masks(tmp_path: Path) -> None:
    """The torch backend draws its own, which no reference knows: such a row has no time, and is no failure."""
    out = tmp_path / "kernels.csv"
    invoke("bench", "kernels", "--only", "attention-bert-base-s512-dropout", "--device", "cpu", "--out", str(out))
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 and rows[0]["status"].startswith("not compared") and not rows[0]["median_ms"]


# --------------------------------------------------------------------------------------------------------------- plot


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def kernel_rows() -> list[dict[str, Any]]:
    base = {"direction": "fwd", "inputs": "cold", "device": "a device", "status": "ok", "commit": "abc"}
    return [
        {**base, "workload": f"attention-d64-s{n}", "peer": peer, "median_ms": 1.0, "ratio": ratio, "tflops": n / ratio}
        for n in (128, 512)
        for peer, ratio in (("fasttx[triton]", 1.0), ("eager", 2.0))
    ]


def test_plot_draws_steps_and_names_what_is_inexact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed: plots need fasttx[bench]")
    drawn: list[list[str]] = []

    def save(self: Any, path: Path, **options: Any) -> None:
        drawn.append([text.get_text() for legend in self.axes[0].findobj() for text in getattr(legend, "texts", [])])

    monkeypatch.setattr(figure.Figure, "savefig", save)
    rows = [{**row, "direction": "step"} for row in kernel_rows()[:2]]
    rows[1]["status"] = "inexact"
    written = plots.draw(table(tmp_path / "kernels.csv", rows), tmp_path / "plots")
    assert [path.name for path in written] == ["kernels-speed-up-step.png"]
    assert "eager (inexact)" in drawn[0]


def colours(path: Path) -> set[str]:
    """The colours of a picture, where they cover some area."""
    from matplotlib.image import imread

    pixels = (torch.from_numpy(imread(path)[..., :3].reshape(-1, 3).copy()) * 255).round().int()
    found, counts = (pixels @ torch.tensor([1 << 16, 1 << 8, 1], dtype=torch.int32)).unique(return_counts=True)
    return {f"#{colour:06x}" for colour in found[counts > 100].tolist()}


def test_plot_draws_what_the_table_holds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: plots need fasttx[bench]")
    path = table(tmp_path / "kernels.csv", kernel_rows())
    written = invoke("plot", str(path), "--out", str(tmp_path / "plots"), columns=500).split()
    assert [Path(name).name for name in written] == ["kernels-speed-up-fwd.png", "kernels-attention-fwd.png"]
    for name in written:
        assert {plots.OURS, plots.OTHERS[0], "#ffffff"} <= colours(Path(name))
    models = [
        {
            "model": "minilm",
            "task": "training",
            "lengths": "full",
            "batch": 2,
            "seqlen": n,
            "arm": arm,
            "median_ms": 1,
            "ratio": 1.5,
            "tokens_per_s": n * (1 + len(arm)),
            "device": "a device",
            "commit": "abc",
        }
        for n in (64, 128)
        for arm in ("fasttx", "sdpa")
    ]
    path = table(tmp_path / "model.csv", models)
    written = invoke("plot", str(path), "--out", str(tmp_path / "plots"), columns=500).split()
    assert [Path(name).name for name in written] == ["model-speed-up.png", "model-minilm-training.png"]
    assert plots.OTHERS[0] in colours(Path(written[0]))


def test_plot_names_a_wrong_file(tmp_path: Path) -> None:
    assert "no such file" in invoke("plot", str(tmp_path / "none.csv"), code=2, columns=500)
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    assert "has no rows of fasttx bench" in invoke("plot", str(other), code=2, columns=500)
    other.write_text("")
    assert "has no rows of fasttx bench" in invoke("plot", str(other), code=2, columns=500)
    rows = [{**row, "median_ms": ""} for row in kernel_rows()]
    assert "none of its 4 rows has a time" in invoke("plot", str(table(other, rows)), code=2, columns=500)
    assert not (tmp_path / "plots").exists()


# ------------------------------------------------------------------------------------------------------------- verify


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny classifier with its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "short", "one", ".", "the", "batch", "padding", "is"]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_verify_a_saved_model(saved: Path, tmp_path: Path) -> None:
    text = invoke("verify", str(saved), "--device", "cpu")
    assert "fasttx.verify(BertForSequenceClassification): ok" in text and "logits" in text
    assert "fasttx.explain" in text and "dropout, sum, layer norm" in text
    lines = tmp_path / "lines.txt"
    lines.write_text("a short one.\n\nthe batch is padding.\n")
    found = json.loads(
        invoke("verify", str(saved), "--device", "cpu", "--json", "--text", str(lines), "--dtype", "bfloat16")
    )
    assert found["verify"]["ok"] and found["verify"]["reference"] == "float32"
    assert {"report", "explain"} <= set(found)


@pytest.mark.slow
def test_verify_loads_an_int8_model_in_a_process_of_its_own(saved: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(saved)
    fasttx.quantize(model)
    model.save_pretrained(saved)
    command = [sys.executable, "-m", "fasttx", "verify", str(saved), "--device", "cpu", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[2])
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["verify"]
    assert found["ok"] and len(found["int8"]) == 12 and all(0 < layer["error"] < 0.05 for layer in found["int8"])


def test_verify_tells_a_wrong_result(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_rows = padding_free.put_rows

    def wrong(rows: Tensor, indices: Tensor, total: int) -> Tensor:
        return put_rows(rows * 1.01, indices, total)

    monkeypatch.setattr(padding_free, "put_rows", wrong)
    monkeypatch.setattr(decision, "WORTH_IT_ON_CPU", 0)
    assert "WRONG" in invoke("verify", str(saved), "--device", "cpu", code=1)


def test_verify_names_what_is_wrong(saved: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([str(tmp_path / "nothing")], "has no config.json"),
        ([str(saved), "--dtype", "float8"], "--dtype: got 'float8'; allowed are float32"),
        ([str(saved), "--device", "nonsense"], "--device nonsense"),
        ([str(saved), "--backend", "rocm"], "backend: got 'rocm'; allowed"),
        ([str(saved), "--text", str(tmp_path / "none.txt")], "no such file"),
        ([str(saved), "--text", str(saved / "empty")], "no such file"),
    ):
        assert message in " ".join(invoke("verify", *arguments, code=2, columns=500).split())
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"architectures": ["BertForNothing"]}))
    assert "'BertForNothing'" in invoke("verify", str(saved), code=2, columns=500)
    (saved / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    assert "--device" not in invoke("verify", str(saved), code=2, columns=500)  # the shapes of the weights are wrong
    (saved / "config.json").write_text("{")
    invoke("verify", str(saved), code=2)
