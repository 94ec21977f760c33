"""What an installation compiles, for which devices, and what it says meanwhile, with compilers that write a word."""

from __future__ import annotations

import ctypes
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import announce
import backend
import compiling
import cuda_build
import pytest

ROOT = Path(__file__).resolve().parents[1]
ALL = cuda_build.DEFAULT_ARCHS.split(",")
COMPILER = """#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo made > "$2"; [ "$1" = -MF ] && echo "x.o : $0" > "$2"; shift; done
exit 0
"""
"""It says that it read itself."""


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit whose compilers write a word; nothing is asked for, and no GPU is here."""
    for folder in ("bin", "lib64"):
        (tmp_path / "cuda" / folder).mkdir(parents=True)
    for program in ("nvcc", "g++"):
        path = tmp_path / "cuda" / "bin" / program
        path.write_text(COMPILER)
        path.chmod(0o755)
    (tmp_path / "cuda" / "lib64" / "libcudart_static.a").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("CXX", str(tmp_path / "cuda" / "bin" / "g++"))
    monkeypatch.delenv("FASTTX_CUDA", raising=False)
    monkeypatch.delenv("FASTTX_CUDA_ARCHS", raising=False)
    monkeypatch.setattr(announce, "_behind_pip", False)
    gpus(monkeypatch)
    return tmp_path / "cuda"


def gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """The driver of a machine with GPUs of these capabilities; without any there is no driver."""

    def put(pointer: Any, value: int) -> int:
        pointer._obj.value = value
        return 0

    driver = SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDeviceGetCount=lambda p: put(p, len(capabilities)),
        cuDeviceGet=lambda p, i: put(p, 40 + i),
        cuDeviceGetAttribute=lambda p, attribute, device: put(p, capabilities[device - 40][{75: 0, 76: 1}[attribute]]),
    )

    def load(name: str) -> Any:
        if capabilities:
            return driver
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_build, "ctypes", SimpleNamespace(CDLL=load, c_int=ctypes.c_int, byref=ctypes.byref))


def test_the_devices_here_are_named_as_kernels_are_compiled_for_them(toolkit, monkeypatch) -> None:
    assert cuda_build.devices() == []
    gpus(monkeypatch, (9, 0), (7, 5), (8, 7), (9, 0), (10, 0))
    assert cuda_build.devices() == ["90a", "87", "100"]


@pytest.mark.parametrize(
    ("environment", "editable", "wanted"),
    [
        ({}, True, ["90a"]),
        ({}, False, ALL),
        ({"FASTTX_CUDA": "1"}, True, ALL),
        ({"FASTTX_CUDA": "1"}, False, ALL),
        ({"FASTTX_CUDA_ARCHS": "80, ptx90"}, True, ["80", "ptx90"]),
        ({"FASTTX_CUDA_ARCHS": "80, ptx90"}, False, ["80", "ptx90"]),
        ({"FASTTX_CUDA_ARCHS": "86", "FASTTX_CUDA": "1"}, True, ["86"]),
    ],
)
def test_for_which_devices(toolkit, monkeypatch, environment, editable, wanted) -> None:
    gpus(monkeypatch, (9, 0))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cuda_build.archs(editable) == wanted
    assert cuda_build.why_not() is None
    assert any(name.startswith("pybind11") for name in backend._compiling())


def test_without_a_gpu_nothing_is_compiled_and_one_line_says_how_to_ask(toolkit, monkeypatch) -> None:
    reason = "no CUDA C++ kernels are compiled, as no NVIDIA GPU (8.0 or later) is here; FASTTX_CUDA=1 compiles them"
    assert cuda_build.why_not() == reason and backend._compiling() == []
    gpus(monkeypatch, (7, 5))
    assert cuda_build.why_not() == reason
    for name, value in {"FASTTX_CUDA": "1", "FASTTX_CUDA_ARCHS": "80"}.items():
        with monkeypatch.context() as asked:
            asked.setenv(name, value)
            assert cuda_build.why_not() is None and backend._compiling() == ["pybind11>=2.13"]
    monkeypatch.setenv("FASTTX_CUDA", "0")
    assert cuda_build.why_not().startswith("FASTTX_CUDA=0") and backend._compiling() == []


def test_a_gpu_without_nvcc_is_told_how_to_get_one(toolkit, monkeypatch) -> None:
    gpus(monkeypatch, (9, 0))
    monkeypatch.setattr(cuda_build, "find_toolkit", lambda: None)
    assert "as no nvcc was found" in cuda_build.why_not() and "FASTTX_CUDA=1 brings nvcc" in cuda_build.why_not()
    assert backend._compiling() == []
    monkeypatch.setenv("FASTTX_CUDA", "1")
    with pytest.raises(SystemExit, match="FASTTX_CUDA=1 asks for the kernels in CUDA C.., but no nvcc was found"):
        cuda_build.why_not()


@pytest.mark.parametrize(
    ("here", "named", "said"),
    [
        (((9, 0),), None, "for 80, 86, 89, 90a, .*FASTTX_CUDA_ARCHS=90a compiles for this machine alone"),
        ((), None, "for 80, 86, 89, 90a, .*FASTTX_CUDA_ARCHS=80,90a compiles for those two alone"),
        (((9, 0),), "80,86", "for 80, 86 by .*as FASTTX_CUDA_ARCHS says"),
    ],
)
def test_a_build_says_what_it_compiles_and_how_far_it_is(toolkit, tmp_path, monkeypatch, capsys, here, named, said):
    gpus(monkeypatch, *here)
    if named is not None:
        monkeypatch.setenv("FASTTX_CUDA_ARCHS", named)
    cuda_build.build(tmp_path / "_C.so", tmp_path / "objects")
    first, *rest = capsys.readouterr().out.splitlines()
    files = sorted([p.name for p in cuda_build.CSRC.glob("*/*.cu")] + ["bindings.cpp"])
    assert re.search(rf"^fasttx: compiling {len(files)} files of CUDA C\+\+ {said}", first)
    done = [re.fullmatch(rf"fasttx: \[(\d+)/{len(files)}\] (\S+), \d+ s", line) for line in rest]
    assert [int(m[1]) for m in done] == list(range(1, len(files) + 1)) and sorted(m[2] for m in done) == files
    assert (tmp_path / "_C.so").read_text() == "made\n"


def test_a_build_ends_at_the_first_file_that_does_not_compile(toolkit, tmp_path, monkeypatch) -> None:
    (toolkit / "bin" / "nvcc").write_text("#!/bin/sh\necho 'softmax.cu(3): error: no such thing' >&2; exit 1\n")
    monkeypatch.setenv("MAX_JOBS", "1")
    with pytest.raises(RuntimeError, match="no such thing"):
        cuda_build.build(tmp_path / "_C.so", tmp_path / "objects")


def test_of_the_sources_those_are_compiled_again_that_read_what_was_edited(toolkit, tmp_path, monkeypatch) -> None:
    common, folder = tmp_path / "with space.cuh", tmp_path / "objects"
    jobs = []
    for name in ("one", "two"):
        source = tmp_path / f"{name}.cu"
        source.write_text(name)
        jobs.append(cuda_build.kernel_job(cuda_build.find_toolkit(), source, ["80"]))
    common.write_text("first")
    ran: list[str] = []

    def run(command: list[str]) -> str:
        source = Path(command[command.index("-c") + 1])
        ran.append(source.stem)
        reads = f"{source} \\\n " + str(common).replace(" ", "\\ ") if source.stem == "two" else str(source)
        Path(command[command.index("-MF") + 1]).write_text(f"{source.stem}.o : {reads}\n")
        Path(command[-1]).write_text("made")
        return "it said so"

    monkeypatch.setattr(compiling, "run", run)
    before = [job.made(folder) for job in jobs]
    assert ran == ["one", "two"] and compiling.messages_of(before[0]).read_text() == "it said so"
    assert [job.made(folder) for job in jobs] == before and len(ran) == 2
    common.write_text("edited")
    assert jobs[0].found(folder) == before[0] and jobs[1].found(folder) is None
    after = jobs[1].made(folder)
    assert after != before[1] and ran == ["one", "two", "two"] and jobs[1].found(folder) == after
    common.write_text("first")
    assert jobs[1].found(folder) == before[1]
    common.unlink()
    assert jobs[1].found(folder) is None and jobs[0].found(folder) == before[0]


def test_what_is_edited_while_it_is_compiled_is_compiled_once_more(toolkit, tmp_path, monkeypatch) -> None:
    """Else an object of the old text would be kept under the hash of the new one, and found by every later build."""
    source, header, folder = tmp_path / "one.cu", tmp_path / "one.cuh", tmp_path / "objects"
    source.write_text("source")
    header.write_text("old")
    job = cuda_build.kernel_job(cuda_build.find_toolkit(), source, ["80"])
    ran: list[str] = []

    def run(command: list[str]) -> str:
        ran.append(header.read_text())
        Path(command[command.index("-MF") + 1]).write_text(f"one.o : {source} {header}\n")
        Path(command[-1]).write_text(ran[-1])
        if len(ran) == 1:
            header.write_text("new")
        return ""

    monkeypatch.setattr(compiling, "run", run)
    assert job.made(folder).read_text() == "new" and ran == ["old", "new"]
    assert job.found(folder) == job.made(folder) and len(ran) == 2
    header.write_text("old")
    assert job.found(folder) is None


def test_for_which_archs_a_file_is_compiled() -> None:
    names = ["80", "90a", "100", "ptx120"]
    assert cuda_build.archs_of(Path("csrc/attention/attention_fwd_sm80.cu"), names) == names
    assert cuda_build.archs_of(Path("csrc/attention/attention_fwd_sm90.cu"), names) == ["90a"]
    assert cuda_build.archs_of(Path("csrc/attention/attention_fwd_sm90.cu"), ["80", "ptx90"]) == []


def test_two_files_of_one_name_are_refused(toolkit, tmp_path, monkeypatch) -> None:
    for folder in ("one", "two"):
        (tmp_path / "csrc" / folder).mkdir(parents=True)
        (tmp_path / "csrc" / folder / "same.cu").touch()
    monkeypatch.setattr(cuda_build, "CSRC", tmp_path / "csrc")
    with pytest.raises(RuntimeError, match="two files are called same.cu"):
        cuda_build.jobs(cuda_build.find_toolkit(), ["80"])


def in_a_terminal(code: str) -> str:
    """What a person sees of a process whose output another program keeps to itself, as pip keeps that of a build."""
    child, terminal = pty.fork()
    if child == 0:
        subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT / "buildsystem")
        os._exit(0)
    seen = b""
    while True:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # the terminal's other end is closed
            break
        if not block:
            break
        seen += block
    os.waitpid(child, 0)
    return seen.decode()


def test_what_a_build_says_reaches_the_person_behind_pip() -> None:
    assert in_a_terminal("import announce; announce.say('one')") == ""
    assert "fasttx: two" in in_a_terminal("import announce; announce.behind_pip(); announce.say('two')")


@pytest.mark.parametrize("command", ["build_wheel", "build_editable"])
def test_the_hooks_say_that_nothing_is_compiled(toolkit, tmp_path, monkeypatch, capsys, command: str) -> None:
    monkeypatch.setattr(backend.build_meta, command, lambda *a: f"{command} of setuptools")
    assert getattr(backend, command)(str(tmp_path)) == f"{command} of setuptools"
    assert capsys.readouterr().out.count("no CUDA C++ kernels are compiled") == 1
    gpus(monkeypatch, (9, 0))
    getattr(backend, command)(str(tmp_path))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("asked", [{}, {"FASTTX_CUDA_ARCHS": "86,90a"}], ids=["nothing", "archs"])
def test_setup_compiles_what_is_asked_for(toolkit, tmp_path, monkeypatch, asked: dict[str, str]) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    tree = tmp_path / "tree"
    for name in ("buildsystem", "csrc", "fasttx", "kernels", "bench"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env=os.environ | asked | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert ("files of CUDA C++ for 86, 90a by" in done.stdout) == bool(asked)
    assert len(list((tree / "fasttx").glob("_C.*.so"))) == bool(asked)
