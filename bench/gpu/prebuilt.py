"""What `make gpu-prepare` made on a CPU machine and `make gpu-check` takes into use. The standard library alone.

In .prebuilt/: manifest.json says for which Python, torch, Triton and commit; _C*.so are the kernels in CUDA C++;
cache.tar.xz is Triton's cache; launchers.json has the C sources of Triton's launchers, to be compiled where the driver
is. What does not fit the machine is named and left alone: its kernels are compiled there, which takes time.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".prebuilt"
MANIFEST, CACHE_FILE, LAUNCHERS = "manifest.json", "cache.tar.xz", "launchers.json"
CACHE = Path("/tmp/fasttx-triton-cache")
"""Where the cache is made and has to lie again: its files name each other by absolute paths."""
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def environment(rehearse: bool = False) -> dict[str, str]:
    """What the children of `make gpu-check` and of `make gpu-prepare` have in their environment."""
    found = {
        "FASTTX_FIRST_USE_CHECK": "0",
        "FASTTX_TUNED": "0",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    found |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1" if rehearse else "4"}
    return found if rehearse else found | {"TRITON_CACHE_DIR": str(CACHE)}


def versions() -> dict[str, str]:
    """Of what machine code and launchers are made for."""
    found = {"python": SUFFIX}
    for name in ("triton", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def commit() -> str:
    """The checkout's commit, '+' where tracked files differ from it; "" where git cannot tell."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    found = git("rev-parse", "--short=12", "HEAD")
    if not found:
        return ""
    return found + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def manifest(folder: Path = FOLDER) -> dict[str, Any]:
    """What was prepared; empty without any."""
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def unfit(made: dict[str, Any]) -> str:
    """Why the prepared cache is of no use here, or ""."""
    here = versions()
    apart = [
        f"{name} {made.get(name)}, here is {here[name]}"
        for name in ("python", "triton")
        if made.get(name) != here[name]
    ]
    return "; ".join(apart)


def unpack(
    rehearse: bool = False, folder: Path = FOLDER, cache: Path = CACHE, package: Path | None = None
) -> list[str]:
    """Puts the cache and the module where they are looked for, and says what it did."""
    if rehearse:
        return []
    made, begun = manifest(folder), time.monotonic()
    if not made:
        return ["nothing was prepared (make gpu-prepare): kernels are compiled here, for minutes"]
    said = [f"prepared for commit {made['commit']}, {made['variants']} variants"]
    now = commit()
    if now and now != made["commit"]:
        said.append(f"the tree is at {now}: kernels that have changed since are compiled here")
    reason = unfit(made)
    if reason:
        return [*said, f"it was prepared for other versions ({reason}): kernels are compiled here, for minutes"]
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / CACHE_FILE) as archive:
        archive.extractall(cache, filter="data") if sys.version_info >= (3, 12) else archive.extractall(cache)
    package = ROOT / "fasttx" if package is None else package
    for module in folder.glob(f"_C*{SUFFIX}"):
        if not (package / module.name).exists():
            shutil.copyfile(module, package / module.name)
            said.append(f"{module.name} is in its place")
    return [*said, f"unpacked in {time.monotonic() - begun:.1f} s"]
