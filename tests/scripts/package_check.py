"""Builds sdist and wheel as a release would, and goes a user's path with the wheel where nothing else of fasttx is.

The wheel is made from the sdist, not from the checkout, so that a file missing from the sdist is found.  It is
installed into a new environment (users_path.py), imported, used on a real model, and uninstalled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from users_path import Installed

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "buildsystem"))
import cpu_build  # noqa: E402

IMPORT_CHECK = """
import socket, sys, time
def refuse(*args, **kwargs): raise SystemExit("importing fasttx opened a socket")
socket.socket.connect = refuse
import torch
began = time.perf_counter()
import fasttx.nn  # whose parts come with the first name that is used
took = time.perf_counter() - began
assert fasttx.__file__.startswith(sys.prefix), fasttx.__file__
assert not torch.cuda.is_initialized()
for absent in ("triton", "transformers", "typer"):
    assert absent not in sys.modules, f"import fasttx imported {absent}"
print(f"fasttx {fasttx.__version__} imports in {took * 1e3:.0f} ms beyond torch")
"""


CORPUS_CHECK = """
from fasttx.bench import corpus
train, dev, labels = corpus.read_pair(corpus.TEXTS / "train.txt", corpus.TEXTS / "dev.txt")
print(f"its corpus: {len(train)} and {len(dev)} passages, {len(labels)} labels")
"""


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    print("$", " ".join(map(str, command)), flush=True)
    environment = os.environ | {"FASTTX_CUDA": "0"}  # tests/cuda builds and loads that module
    subprocess.run([str(c) for c in command], cwd=cwd, check=True, env=environment)


def members_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def expect(found: set[str], wanted: set[str], what: str) -> None:
    missing = sorted(wanted - found)
    if missing:
        raise SystemExit(f"{what} lacks {', '.join(missing)}")


def main() -> None:
    kernels = {f"fasttx/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py")}
    bench = {f"fasttx/bench/{p.name}" for p in (ROOT / "bench").glob("*.py")}
    texts = {f"fasttx/bench/texts/{name}" for name in ("train.txt", "dev.txt", "languages.txt", "README.md")}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "fasttx").rglob("*.py")}
    modules -= {"fasttx/bench/texts/make_corpus.py"}  # data, with the script that made it
    wanted = kernels | bench | texts | modules | {"fasttx/py.typed"}
    if not kernels:
        raise SystemExit("kernels/ holds no Python file")

    with tempfile.TemporaryDirectory(prefix="fasttx-package-") as folder:
        work = Path(folder)
        run(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT)  # the wheel from the sdist
        (sdist,) = (work / "dist").glob("*.tar.gz")
        (wheel,) = (work / "dist").glob("*.whl")
        with tarfile.open(sdist) as archive:
            members = archive.getmembers()
        links = [m.name for m in members if m.issym() or m.islnk()]
        if links:
            raise SystemExit(f"{sdist.name} holds links, which pip on Windows cannot unpack: {', '.join(links)}")
        in_sdist = {m.name.split("/", 1)[1] for m in members if "/" in m.name}
        expect(in_sdist, wanted | {"LICENSE", "README.md", "pyproject.toml", "setup.py"}, sdist.name)
        in_wheel = members_of(wheel)
        expect(in_wheel, wanted, wheel.name)
        for_cpu = any(name.startswith("fasttx/_C_cpu.") for name in in_wheel)
        if for_cpu == (cpu_build.why_not() is not None):
            raise SystemExit(f"{wheel.name}: the kernels for the CPU are {'in it' if for_cpu else 'not in it'}")
        shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would pack what an older build left there
        run(sys.executable, "-m", "build", "--wheel", "--outdir", work / "direct", ROOT)  # what `pip install .` makes
        (direct,) = (work / "direct").glob("*.whl")
        if members_of(direct) != in_wheel:
            raise SystemExit(f"the wheels of checkout and sdist differ in {sorted(members_of(direct) ^ in_wheel)}")
        stray = sorted(n for n in in_wheel if not n.startswith(("fasttx/", "fasttx-")))
        if stray:
            raise SystemExit(f"{wheel.name} installs outside fasttx/: {', '.join(stray)}")

        installed = Installed(wheel, work)
        for script in (IMPORT_CHECK, CORPUS_CHECK):
            print(installed.run("-c", script), end="")
        installed.walk()
    print(f"package-check: {len(in_sdist)} files in the sdist, {len(in_wheel)} in the wheel, {len(kernels)} kernels")


if __name__ == "__main__":
    main()
