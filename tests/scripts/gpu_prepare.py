"""`make gpu-prepare`: on a machine without a GPU, all that `make gpu-check` would otherwise spend its minutes on.

    python tests/scripts/gpu_prepare.py [--out .prebuilt] [--part first second] [--only STAGE ...] [--jobs 2]

For the GPU (sm_90), and for the Python, torch and Triton that run this: fasttx._C, and Triton's cache with each variant
that the stages of bench/gpu launch. The variants come from the stages: their own code runs here on CPU tensors, in a
mode in which products and random numbers are zeros, and every kernel is compiled by the pretend device of
tests/ahead_of_time in place of a launch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT, ROOT / "buildsystem", ROOT / "tests"):
    sys.path.insert(0, str(place))

from bench.gpu import prebuilt  # noqa: E402
from bench.gpu.stages import PARTS, Stage  # noqa: E402

ARCH, NVCC_ARCH = 90, "90a"
STRIPPED = (".ttir", ".ttgir", ".llir", ".source", ".ptx.tmp")
"""What Triton writes beside the machine code, and does not need to launch it."""
WRITTEN_THERE = "__triton_launcher"


# ------------------------------------------------------------------------------------------- a stage without a GPU


def _zeros_mode() -> Any:
    """Products and random numbers are zeros: nobody looks at the values, and a CPU would take minutes for them."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    skipped = {
        packet
        for packet in (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten._int_mm, aten.randn, aten.normal_, aten.erfinv)
    }

    class Zeros(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func._overloadpacket not in skipped:
                return func(*args, **kwargs)
            if func._overloadpacket is aten.normal_:
                return args[0].zero_()
            kwargs.pop("generator", None)
            if func._overloadpacket is aten.randn:
                return torch.zeros(args[0], dtype=kwargs.get("dtype"), device="cpu")
            out = func(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in args), **kwargs)
            return torch.zeros(out.shape, dtype=out.dtype)

    return Zeros()


def to_meta(x: Any) -> Any:
    """A tensor without memory that lies as `x` does, offset and strides included: what a variant hangs on."""
    import torch

    if not isinstance(x, torch.Tensor):
        return x
    whole = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype, device="meta")
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


@contextlib.contextmanager
def pretended(launchers: dict[str, dict[str, str]]) -> Iterator[list[Any]]:
    """Within it, ops run on CPU tensors as they would on the GPU, but for the launch, which compiles.

    `launchers` gets the C sources that Triton makes for it; what is yielded is the list of the variants.
    """
    from ahead_of_time import dry_device
    from triton.backends.nvidia import driver

    from bench import peers, timer
    from fasttx.models.fusions import fusion
    from fasttx.models.padding import decision
    from fasttx.ops import dispatch, registry

    resolve, launcher_cls = dispatch.resolve, dry_device._Driver.launcher_cls

    def launch_on_meta(path: str) -> Callable[..., None]:
        launch = resolve(path)
        return lambda *args: launch(*map(to_meta, args))

    def choice(op: Any, requested: str, *tensors: Any) -> Any:
        for impl in op.impls if requested != "torch" and tensors[0].numel() else ():
            if impl.backend == "triton" and impl.supports(*tensors) is None:
                return impl
        return None

    def keep_source(self: Any, src: Any, metadata: Any) -> Any:
        def keep(src: str, name: str, **_: Any) -> Any:
            launchers[src] = {"src": src, "name": name}
            return mock.Mock()

        with (
            mock.patch.object(driver, "compile_module_from_src", keep),
            mock.patch.object(driver, "library_dirs", list),
        ):
            driver.CudaLauncher(src, metadata)
        return launcher_cls(self, src, metadata)

    once: Any = lambda call, slots, device: (call(slots[0]), (1.0, 1.0))[1]  # noqa: E731
    patches = [
        mock.patch.object(dispatch, "resolve", launch_on_meta),
        mock.patch.object(registry.Op, "choice", choice),
        mock.patch.object(registry.Op, "has_kernel", lambda *_: True),
        mock.patch.object(registry, "cannot_run_on", lambda *_: None),
        mock.patch.object(fusion, "UNFUSED_ON", frozenset()),
        mock.patch.object(decision, "_full_on_a_cpu", lambda *_: False),
        mock.patch.object(decision, "_enough_for_a_cpu", lambda *_: True),
        mock.patch.object(dry_device._Driver, "launcher_cls", keep_source),
        mock.patch.object(timer, "_batch", once),
        mock.patch.object(peers, "_flex", lambda *_: "not here"),
    ]
    import fasttx

    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        records = stack.enter_context(dry_device.dry_device(ARCH))
        stack.enter_context(fasttx.backend("triton"))
        stack.enter_context(_zeros_mode())
        yield records


def dry(stage: Stage, share: tuple[int, int], folder: Path, part_of_name: str) -> int:
    """Compiles what a share of a stage launches; 1 where an item fails."""
    import torch

    from bench.gpu.item import Context

    context = Context(torch.device("cpu"), dry=True)
    module, launchers, failed = importlib.import_module(stage.module), dict[str, dict[str, str]](), 0
    with pretended(launchers) as records:
        items = [item for item in module.items(context) if part_of_name in item.name]
        for item in items[share[0] :: share[1]]:
            before, begun = len(records), time.monotonic()
            try:
                list(item.run(context))
            except Exception as problem:  # the others are compiled; this one would be on the GPU
                import traceback

                traceback.print_exc()
                failed = 1
                print(f"{stage.name} {item.name}: {type(problem).__name__}: {problem}", flush=True)
            print(
                f"{stage.name} {item.name}: {len(records) - before} variants, {time.monotonic() - begun:.1f} s",
                flush=True,
            )
    (folder / f"launchers-{stage.name}-{share[0]}.json").write_text(
        json.dumps(list(launchers.values())), encoding="utf-8"
    )
    return failed


# ----------------------------------------------------------------------------------------------------- the parts


def compile_cache(stages: list[Stage], out: Path, cache: Path, jobs: int, part_of_name: str) -> int:
    """Fills the cache and writes launchers.json; returns how many children failed."""
    environ = os.environ | prebuilt.environment() | {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(cache)}
    environ.pop("TRITON_INTERPRET", None)
    failed = 0
    for stage in stages:
        command = [sys.executable, __file__, "--out", str(out), "--items", part_of_name, "--dry", stage.name, "--share"]
        children = [subprocess.Popen([*command, f"{i}/{jobs}"], env=environ) for i in range(jobs)]
        failed += sum(child.wait() != 0 for child in children)
    found: dict[str, dict[str, str]] = {}
    for path in sorted(out.glob("launchers-*.json")):
        found |= {launcher["src"]: launcher for launcher in json.loads(path.read_text(encoding="utf-8"))}
        path.unlink()
    (out / prebuilt.LAUNCHERS).write_text(json.dumps(list(found.values())), encoding="utf-8")
    return failed


def pack(cache: Path, archive: Path) -> int:
    """Strips the cache and packs it; the number of variants."""
    for path in cache.rglob("*"):
        if path.suffix in STRIPPED:
            path.unlink()
    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(cache.iterdir()):
            tar.add(path, arcname=path.name)
    return len(list(cache.rglob("*.cubin")))


def build_module(out: Path) -> str:
    """fasttx._C for sm_90a and this Python; why not, where there is no nvcc."""
    import cuda_build

    reason = cuda_build.lacks()
    if reason is not None:
        return f"fasttx._C is left out: {reason}"
    cuda_build.build(out / f"_C{prebuilt.SUFFIX}", ROOT / "build" / "cuda", [NVCC_ARCH])
    return f"fasttx._C is built for sm_{NVCC_ARCH}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=prebuilt.FOLDER)
    parser.add_argument("--part", nargs="*", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--only", nargs="*", default=[], help="stages by name")
    parser.add_argument("--items", default="", help="a part of the name of those to compile")
    parser.add_argument("--cache", type=Path, default=prebuilt.CACHE, help="where it has to lie when it is used, too")
    parser.add_argument("--keep-cache", action="store_true", help="add to what is there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--python", default="", help="refuse to be another Python than this, such as 3.12")
    parser.add_argument("--no-module", action="store_true", help="leave fasttx._C out")
    parser.add_argument("--dry", default="", help=argparse.SUPPRESS)
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    stages = list({stage.name: stage for part in options.part for stage in PARTS[part] if stage.compiles}.values())
    if options.dry:
        (stage,) = (stage for stage in stages if stage.name == options.dry)
        first, of = map(int, options.share.split("/"))
        return dry(stage, (first, of), options.out, options.items)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if options.python and options.python != here:
        parser.error(f"--python: got {options.python}; allowed is {here}, which runs this")
    begun = time.monotonic()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    stages = [stage for stage in stages if not options.only or stage.name in options.only]
    if not options.keep_cache:
        shutil.rmtree(options.cache, ignore_errors=True)
    options.cache.mkdir(parents=True, exist_ok=True)
    failed = compile_cache(stages, options.out, options.cache, options.jobs, options.items)
    variants = pack(options.cache, options.out / prebuilt.CACHE_FILE)
    print("no fasttx._C was asked for" if options.no_module else build_module(options.out), flush=True)
    made = prebuilt.versions() | {"commit": prebuilt.commit(), "variants": variants, "arch": ARCH}
    (options.out / prebuilt.MANIFEST).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    for path in sorted(options.out.iterdir()):
        print(f"{path.stat().st_size / 2**20:8.2f} MiB  {path.name}")
    print(f"{variants} variants for {made['python']}, triton {made['triton']}, commit {made['commit'] or 'unknown'}")
    print(f"{time.monotonic() - begun:.0f} s, {failed} children failed")
    return int(failed > 0 or variants == 0)


if __name__ == "__main__":
    sys.exit(main())
