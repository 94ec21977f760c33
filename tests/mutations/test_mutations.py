"""The list of mutations fits the sources, and `make mutate` tells a fault that is noticed from one that is not."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest
import run
from mutation import Mutation
from mutations import MUTATIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_the_old_line_stands_once_in_its_file(mutation: Mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new


def test_every_kernel_has_two():
    counted = collections.Counter(m.file for m in MUTATIONS)
    kernels = [f"kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py") if "@triton.jit" in p.read_text()]
    kernels += [str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob("*/*.cuh") if "__global__ void" in p.read_text()]
    assert len(kernels) > 10
    assert not [name for name in kernels if counted[name] < 2 and name not in HELPERS]


HELPERS = ("kernels/attention_tiles.py",)
"""Loads and stores of the attention kernels, whose mutations are in the files of those."""


def test_names_tell_them_apart():
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "answer.py").write_text("ANSWER = 6 * 7\nUNUSED = 1\n")
    (tmp_path / "test_answer.py").write_text("import answer\n\n\ndef test_it():\n    assert answer.ANSWER == 42\n")
    return tmp_path


def test_a_fault_that_a_test_sees_is_noticed_and_taken_back(tree):
    before = (tree / "answer.py").read_text()
    status, why = run.mutated(tree, Mutation("answer.py", "6 * 7", "6 * 9", ("test_answer.py",)))
    assert status == run.RED and "test_it" in why and run.is_noticed(status, why)
    assert (tree / "answer.py").read_text() == before
    status, _ = run.mutated(tree, Mutation("answer.py", "UNUSED = 1", "UNUSED = 2", ("test_answer.py",)))
    assert status == run.GREEN and not run.is_noticed(status, _)


def test_a_fault_that_does_not_build_proves_nothing(tree):
    (tree / "test_answer.py").write_text(
        "import answer\nimport pytest\n\n\n@pytest.fixture\ndef built():\n    assert answer.ANSWER == 42\n\n\n"
        "def test_it(built):\n    pass\n"
    )
    status, why = run.mutated(tree, Mutation("answer.py", "6 * 7", "6 * 9", ("test_answer.py",)))
    assert status == run.RED and why.startswith("ERROR") and not run.is_noticed(status, why)


def test_tests_that_do_not_exist_are_no_answer(tree):
    assert run.run_tests(tree, ("test_nothing.py",))[0] not in (run.GREEN, run.RED, None)


def test_a_copy_has_the_symlinks(tmp_path):
    run.copy_sources(tmp_path)
    assert (tmp_path / "fasttx" / "kernels").is_symlink() and (tmp_path / "csrc" / "bindings.cpp").is_file()


def test_a_fault_that_does_not_compile_inside_of_a_test_proves_nothing(tree):
    (tree / "g++").write_text("#!/bin/sh\nexit $1\n")
    (tree / "g++").chmod(0o755)
    (tree / "test_answer.py").write_text(
        f"import answer, sys\nsys.path.insert(0, {str(ROOT / 'buildsystem')!r})\nimport compiling\n\n\n"
        "def test_it():\n"
        f"    compiling.run([{str(tree / 'g++')!r}, str(answer.ANSWER - 42)])\n"
    )
    assert run.run_tests(tree, ("test_answer.py",))[0] == run.GREEN
    status, why = run.mutated(tree, Mutation("answer.py", "6 * 7", "6 * 9", ("test_answer.py",)))
    assert status == run.RED and why == "ERROR the sources do not compile" and not run.is_noticed(status, why)


def test_a_build_that_fails_before_the_tests_proves_nothing(tree):
    (tree / "test_answer.py").write_text(
        "import answer\nimport pytest\n\n\ndef test_it():\n    if answer.ANSWER != 42:\n"
        "        pytest.fail('the emulator cannot be built\\nerror: unused parameter', pytrace=False)\n"
    )
    assert run.run_tests(tree, ("test_answer.py",))[0] == run.GREEN
    status, why = run.mutated(tree, Mutation("answer.py", "6 * 7", "6 * 9", ("test_answer.py",)))
    assert status == run.RED and why == "ERROR the sources do not compile" and not run.is_noticed(status, why)
