"""`make sanitize` on machines that cannot, and with a program in compute-sanitizer's place that says what it would."""

from __future__ import annotations

import sys

import host_build
import pytest
import sanitize
import torch

WORKS = """#!{python}
import subprocess, sys
at = sys.argv.index("--target-processes") + 2
assert sys.argv[1] == "--tool" and sys.argv[at] == sys.executable, sys.argv
status = subprocess.call(sys.argv[at:])
errors = {errors}
print(f"========= ERROR SUMMARY: {{errors}} errors")
sys.exit(int(sys.argv[sys.argv.index("--error-exitcode") + 1]) if errors else status)
"""
FAILS = '#!{python}\nprint("========= Error: Target application terminated before first instrumented API call")\n'


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    def make(source: str, **values) -> str:
        program = tmp_path / "compute-sanitizer"
        program.write_text(source.format(python=sys.executable, **values))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return sanitize.find()

    return make


@pytest.fixture
def a_test(tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text("import os\n\n\ndef test_it():\n    assert os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] == '1'\n")
    return (str(path),)


@pytest.mark.parametrize("errors, status, text", [(0, 0, "clean (0 errors)"), (3, 1, "found errors (3 errors)")])
def test_errors_are_told_from_none(stand_in, a_test, tmp_path, errors, status, text):
    program = stand_in(WORKS, errors=errors)
    log = tmp_path / "log"
    assert sanitize.run(program, "memcheck", log, 60, "", a_test) == (status, text)
    assert "1 passed" in log.read_text()


def test_a_failing_test_is_an_error(stand_in, a_test, tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert False\n")
    verdict = sanitize.run(stand_in(WORKS, errors=0), "racecheck", tmp_path / "log", 60, "", a_test)
    assert verdict.status == 1 and "pytest's status is 1" in verdict.text


@pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
def test_the_wrappers_of_csrc_arch_are_among_the_tests(stand_in, tmp_path, monkeypatch):
    """On a machine without a GPU by the emulator, which the stand-in's child processes are told to take."""
    program, log = stand_in(WORKS, errors=0), tmp_path / "log"
    monkeypatch.undo()  # PATH again: kernels are compiled
    monkeypatch.setenv("FASTTX_REHEARSAL", "1")
    verdict = sanitize.run(program, "memcheck", log, 240, "test_instructions_of_ampere and mma")
    assert verdict.status == 0 and log.read_text().startswith("... "), log.read_text()[-2000:]


def test_a_machine_where_it_cannot_work(stand_in, a_test, tmp_path):
    verdict = sanitize.run(stand_in(FAILS), "memcheck", tmp_path / "log", 60, "", a_test)
    assert verdict.status == 2 and "terminated before first instrumented API call" in verdict.text


def test_the_time_limit(stand_in, a_test, tmp_path):
    program = stand_in("#!{python}\nimport time\ntime.sleep(60)\n")
    assert sanitize.run(program, "memcheck", tmp_path / "log", 0.5, "", a_test).status == 1


def test_a_missing_gpu_and_a_missing_program_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sanitize.main(["--out", str(tmp_path / "out")]) == 2
    assert "sees no NVIDIA GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sanitize, "find", lambda: None)
    assert sanitize.main(["--out", str(tmp_path / "out")]) == 2
    assert "compute-sanitizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_bad_tool_is_enough(tmp_path, monkeypatch, capsys):
    found = {"memcheck": sanitize.Verdict(0, "clean"), "racecheck": sanitize.Verdict(1, "bad")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sanitize, "find", lambda: "compute-sanitizer")
    monkeypatch.setattr(sanitize, "run", lambda program, tool, *rest: found.get(tool, sanitize.Verdict(2, "cannot")))
    out = ["--out", str(tmp_path)]
    assert sanitize.main([*out, "--tool", "memcheck"]) == 0
    assert sanitize.main([*out, "--tool", "memcheck", "initcheck"]) == 2
    assert sanitize.main(out) == 1
    assert "racecheck: bad" in capsys.readouterr().out
