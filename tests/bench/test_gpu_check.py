"""The parent of `make gpu-check`: deadlines, crashes, hangs and broken contexts cost an item, and no line is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import allowed, check, records, stages
from bench.gpu.stages import Stage

ROOT = Path(__file__).resolve().parents[2]


def fake(name: str = "fake", **given: object) -> Stage:
    given = {"seconds": 60.0, "item_seconds": 30.0} | given
    return Stage(name, "tests.support.gpu_stage", f"{name}.jsonl", **given)  # type: ignore[arg-type]


def run(
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    items: str,
    *more: Stage,
    seconds: float = 100.0,
    stage_seconds: float = 60.0,
    rehearse: bool = False,
    **given: object,
) -> tuple[list[records.Line], list[str]]:
    """The lines of a stage with these items, which are in its file too, and what was said."""
    monkeypatch.setenv("FASTTX_FAKE_ITEMS", items)
    said: list[str] = []
    own = fake(seconds=stage_seconds, **given)
    lines = check.Check("first", out, seconds, rehearse, said.append).run([own, *more])
    for stage in (own, *more):
        written = records.read(out / stage.file)
        assert sorted(map(json.dumps, written)) == sorted(json.dumps(x) for x in lines if x["stage"] == stage.name)
    return lines, said


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def by_item(lines: list[records.Line]) -> dict[str, list[records.Line]]:
    return {line["item"]: [each for each in lines if each["item"] == line["item"]] for line in lines}


def test_every_fault_costs_its_item_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = "good1,raises,good2,sticky,good3,crashes,good4,leaves,good5,wrong"
    lines, said = run(monkeypatch, tmp_path, items)
    found = by_item(lines)
    assert [name for name in found if name.startswith("good")] == ["good1", "good2", "good3", "good4", "good5"]
    assert all(found[f"good{i}"][0]["ok"] for i in range(1, 6))
    assert found["raises"][-1]["text"] == "ValueError: no such tile" and not found["raises"][-1]["ok"]
    assert "illegal memory access" in found["sticky"][0]["text"]
    assert found["crashes"][-1]["text"].startswith("crashed: SIGSEGV") and found["crashes"][-1]["lost"]
    assert "the last words" in found["crashes"][-1]["text"]
    assert found["leaves"][0]["text"].startswith("crashed: exit status 7")
    assert not found["wrong"][0]["ok"] and "lost" not in found["wrong"][0]
    # an exception costs no process; a broken context, a crash and an exit cost one each
    processes = [found[f"good{i}"][0]["process"] for i in range(1, 6)]
    assert processes[0] == processes[1] and len(set(processes)) == 4
    assert any("BAD" in text and "SIGSEGV" in text for text in said)


def test_an_item_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    lines, _ = run(monkeypatch, tmp_path, "good1,hangs,good2", item_seconds=2.0)
    found = by_item(lines)
    assert found["hangs"][-1]["text"] == "hung: nothing within 2 s"
    assert found["good2"][0]["ok"] and time.monotonic() - begun < 90
    assert not is_alive(found["hangs"][0]["child"])


@pytest.mark.slow
def test_a_stage_ends_at_its_deadline_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    lines, _ = run(monkeypatch, tmp_path, "hangs,good1", fake("after", item_seconds=1.0), stage_seconds=12.0)
    first = [line for line in lines if line["stage"] == "fake"]
    assert [line["text"] for line in first if line.get("lost")] == [
        "killed: the stage's time was up",
        "not run: no time was left for good1",
    ]
    assert not is_alive(first[0]["child"])
    assert any(line["stage"] == "after" and line["item"] == "good1" and line["ok"] for line in lines)
    assert time.monotonic() - begun < 90


def test_nothing_outlives_the_deadline_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    lines, _ = run(monkeypatch, tmp_path, "hangs", fake("after"), seconds=12.0)
    assert time.monotonic() - begun < 30
    assert not is_alive(lines[0]["child"])
    assert [line["text"] for line in lines if line["stage"] == "after"] == ["not run: the part's time was up"]


def test_children_share_the_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, _ = run(monkeypatch, tmp_path, "good1,good2,good3,crashes,good4", workers=2)
    assert sorted(line["item"] for line in lines) == ["crashes", "crashes", "good1", "good2", "good3", "good4"]


@pytest.mark.slow
def test_what_is_beside_runs_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that hangs does not keep the one beside it from its results."""
    lines, _ = run(monkeypatch, tmp_path, "hangs", fake("other"), stage_seconds=15.0, beside=True, item_seconds=3.0)
    texts = [(line["stage"], line["text"]) for line in lines]
    assert texts[:2] == [("fake", "started"), ("other", "started")] or texts[:2] == [
        ("other", "started"),
        ("fake", "started"),
    ]


def test_lines_are_whole_after_a_kill(tmp_path: Path) -> None:
    """The parent itself is killed: what was written is there, line by line."""
    environ = os.environ | {"FASTTX_FAKE_ITEMS": "writes", "PYTHONPATH": str(ROOT)}
    code = (
        "import pathlib, sys; from bench.gpu import check, stages\n"
        "stage = stages.Stage('fake', 'tests.support.gpu_stage', 'fake.jsonl', 60.0)\n"
        "check.Check('first', pathlib.Path(sys.argv[1]), 60.0, False, lambda text: None).run([stage])"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environ, cwd=ROOT, start_new_session=True
    )
    file, until = tmp_path / "fake.jsonl", time.monotonic() + 60
    while (not file.exists() or file.stat().st_size < 1 << 20) and time.monotonic() < until:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True).stdout.split()
    for process in (parent.pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    parent.wait()
    lines = file.read_bytes().split(b"\n")
    assert lines.pop() == b"" and len(lines) > 100
    assert {json.loads(line)["text"] for line in lines} == {"x" * 3000}


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    tail = records.Tail(path)
    assert tail.new() == []
    path.write_text('{"a": 1}\n{"b"')
    assert tail.new() == [{"a": 1}] and records.read(path) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert tail.new() == [{"b": 2}]


def test_lines_of_a_rehearsal_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, _ = run(monkeypatch, tmp_path, "good1,crashes", rehearse=True)
    assert len(lines) == 3 and all(line["rehearsal"] is True for line in lines)
    lines, _ = run(monkeypatch, tmp_path / "real", "good1,crashes")
    assert not any("rehearsal" in line for line in lines)


def test_the_table_has_forty_lines_at_most_and_what_is_wrong_first() -> None:
    lines = [{"stage": "fake", "item": str(i), "ok": i % 50 != 7, "text": "t", "key": True} for i in range(200)]
    table = check.table(lines, [fake(), fake("other")])
    assert len(table) == check.TABLE_LINES
    assert table[:2] == ["fake: 196 good, 4 bad", "other: no result"]
    assert table[2:6] == [f"fake {i}: BAD t" for i in (7, 57, 107, 157)]
    assert table[-1] == f"and {200 - 37} more, in the files"
    assert check.say_line(lines[0] | {"expected": "2 us"}) == "fake 0: t (expected: 2 us)"


def test_the_parts() -> None:
    """Eight files at most, both parts together; one name a stage; time for all of a part's first stages."""
    assert len(stages.files()) <= stages.MOST_FILES
    for part in stages.PARTS.values():
        assert len({stage.name for stage in part}) == len(part)
        assert all((ROOT / f"{stage.module.replace('.', '/')}.py").is_file() for stage in part)
    order = [stage.name for part in stages.PARTS.values() for stage in part]
    assert order[:6] == ["environment", "tests", "ops", "sweep", "step", "attention"]
    assert order[6:] == ["environment", "rows", "tiles", "large", "graphs", "counters"]


def test_the_parent_needs_no_torch() -> None:
    code = (
        "import sys; import bench.gpu.check, bench.gpu.report; sys.exit(bool({'torch', 'triton'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert check.main(["--out", str(tmp_path / "out")]) == 2
    assert "the driver shows no NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stage_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check.main(["--rehearse", "--only", "opps"])
    assert "--only: got opps; allowed are attention, counters, environment" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- which tests run


def test_the_list_of_tests_for_a_gpu() -> None:
    """Files that exist; tests on the device run, those that make CPU tensors do not."""
    assert all((ROOT / place).exists() for place in (*allowed.ON_A_GPU, *allowed.BESIDE_THE_OPS))
    assert all(allowed.may_run(file, ()) for file in allowed.BESIDE_THE_OPS)
    assert allowed.may_run("tests/ops/test_softmax.py", ("device",))
    assert not allowed.may_run("tests/ops/test_softmax.py", ("tmp_path",))
    assert not allowed.may_run("tests/models/test_mlp.py", ("device",))
    assert not allowed.may_run("tests/ops_of_another/test_softmax.py", ("device",))


def test_beside_a_gpu_the_others_are_skipped(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The hook of tests/conftest.py, on the items of this run, as on a machine with a GPU."""
    plugin = next(
        p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "skip_what_a_gpu_adds_nothing_to")
    )

    class Item:
        def __init__(self, path: str, fixtures: tuple[str, ...]) -> None:
            self.path, self.fixturenames, self.markers = ROOT / path, fixtures, list[pytest.MarkDecorator]()

        def add_marker(self, marker: pytest.MarkDecorator) -> None:
            self.markers.append(marker)

    given = [Item("tests/ops/test_softmax.py", ("device",)), Item("tests/ops/test_attention_lowest.py", ())]
    plugin.skip_what_a_gpu_adds_nothing_to(given)
    assert not given[0].markers
    assert given[1].markers[0].name == "skip" and "CUDA_VISIBLE_DEVICES=" in given[1].markers[0].kwargs["reason"]


def test_one_place_sets_what_the_cache_is_kept_by() -> None:
    """Tests, benchmarks and `make gpu-prepare` find each other's kernels: the variable is part of their key."""
    listed = subprocess.run(
        ["git", "grep", "-l", "environ.*TRITON_DEFAULT_FP_FUSION"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:  # a checkout
        assert [name for name in listed.stdout.split() if not name.startswith("tests/bench/")] == ["bench/__init__.py"]
    assert os.environ["TRITON_DEFAULT_FP_FUSION"] == "1"
