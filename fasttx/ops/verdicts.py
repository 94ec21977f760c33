"""What a check on this machine found out about the kernels: which of them failed it, and are out of "auto".

The record is a file for each kind of device, in the user's cache folder or ``$FASTTX_CACHE``. :mod:`fasttx.trust` makes
it; here it is read, once a process and device. A file of another version, device or driver is not looked at, and what
is cut short or no such file counts as none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

FAILED = frozenset(("wrong", "crashed", "hung"))
"""Verdicts that take a row out of "auto"; the others are "ok" and "unchecked"."""


class Row(NamedTuple):
    """A kernel that is checked: an op in one dtype, forward and backward, on one backend."""

    op: str
    backend: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.op}/{self.backend}/{str(self.dtype).removeprefix('torch.')}"


class Verdict(NamedTuple):
    """What became of a row.

    Attributes:
        status: "ok", "wrong", "crashed", "hung" or "unchecked".
        detail: in words, what went wrong or why there is no verdict; "" if it is ok.
        output: the end of what the process that checked it wrote on stderr, if anything went wrong.
    """

    status: str
    detail: str = ""
    output: str = ""

    @property
    def failed(self) -> bool:
        return self.status in FAILED


_rows: dict[torch.device, dict[str, Verdict]] = {}
_failed: dict[torch.device, dict[str, str]] = {}
_since: dict[tuple[torch.device, str], int] = {}
generation = 0
"""Goes up whenever a verdict is added, so that answers which hang on them can be asked again."""
at_a_call: list[Callable[[torch.device], None]] = []
"""Asked before "auto" chooses a kernel on a device. Empty unless a patched model may be moved to an unchecked one."""
_then = threading.local()


def cache_folder() -> Path:
    """Where records are kept: ``$FASTTX_CACHE``, else ``fasttx`` in the user's cache folder."""
    named = os.environ.get("FASTTX_CACHE")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fasttx"
    except RuntimeError:  # nobody's home is known: a folder that cannot be written
        return Path(os.devnull) / "fasttx"


@functools.cache
def _kernels() -> str:
    """A hash of the sources of the Triton kernels, and of which fasttx._C is here."""
    found = hashlib.sha256()
    for path in sorted((Path(__file__).parents[1] / "kernels").glob("*.py")):
        found.update(path.read_bytes())
    spec = importlib.util.find_spec("fasttx._C")
    if spec is not None and spec.origin is not None and os.path.isfile(spec.origin):
        state = os.stat(spec.origin)
        found.update(f"{state.st_size} {state.st_mtime_ns}".encode())
    return found.hexdigest()[:16]


@functools.cache
def _driver() -> str:
    """The driver, in its own words; where these are not to be had, as under WSL 2, the newest CUDA that it knows."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        ask = getattr(torch._C, "_cuda_getDriverVersion", None)  # of builds for CUDA alone; it makes no context
        return "" if ask is None else f"CUDA {ask()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def key(device: torch.device) -> dict[str, str]:
    """What a record holds for: a change of any of these makes another one."""
    name, capability, driver = platform.machine(), "", ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, capability, driver = properties.name, f"{properties.major}.{properties.minor}", _driver()
    return {
        "fasttx": _version("fasttx"),
        "kernels": _kernels(),
        "device": f"{device.type}: {name}",
        "capability": capability,
        "driver": driver,
        "torch": torch.__version__,
        "triton": _version("triton"),
    }


def _of_a_kind(a: torch.device, b: torch.device) -> bool:
    """Whether one record holds for both devices."""
    try:
        return a.type == b.type and key(a) == key(b)
    except (RuntimeError, AssertionError):  # there is no such device
        return a == b


def record_path(device: torch.device) -> Path:
    """The file with the record of this kind of device, and of this user: nobody has to trust what another one wrote."""
    name = hashlib.sha256(json.dumps(key(device), sort_keys=True).encode()).hexdigest()[:16]
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    return cache_folder() / f"checked-{name}{user}.json"


def read(device: torch.device) -> dict[str, Verdict]:
    """The record of a device as its file has it now, from "op/backend/dtype"; empty where there is none."""
    try:
        found = json.loads(record_path(device).read_text(encoding="utf-8"))
        if found["key"] != key(device):
            return {}
        return {str(row): Verdict(*map(str, verdict)) for row, verdict in found["rows"].items()}
    except (OSError, RuntimeError, AssertionError):  # no file, or no such device
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):  # cut short, or something else
        return {}


def add(device: torch.device, verdicts: Mapping[str, Verdict]) -> None:
    """Makes verdicts hold in this process, on every device of the kind."""
    global generation
    generation += 1
    for each in {device, *(other for other in list(_rows) if _of_a_kind(other, device))}:
        _hold(each, verdicts, generation)


def _hold(device: torch.device, verdicts: Mapping[str, Verdict], since: int) -> None:
    rows = _rows.get(device, {})
    rows.update(verdicts)
    failed = {row: verdict.detail for row, verdict in rows.items() if verdict.failed}
    for row in failed:
        _since.setdefault((device, row), since)
    _failed[device] = failed
    _rows[device] = rows  # at last: another thread may ask meanwhile


def known(device: torch.device) -> dict[str, Verdict]:
    """The verdicts that hold in this process, from "op/backend/dtype"; the file is read at the first question."""
    if device not in _rows:
        same = next((rows for other, rows in list(_rows.items()) if _of_a_kind(other, device)), {})
        _hold(device, read(device) | same, 0)
    return _rows[device]


def forget() -> None:
    """Asks the files again at the next question."""
    global generation
    _rows.clear()
    _failed.clear()
    _since.clear()
    generation += 1


@contextlib.contextmanager
def as_of(when: int) -> Iterator[None]:
    """Within it, this thread knows no verdict that came later than that generation."""
    before, _then.generation = getattr(_then, "generation", None), when
    try:
        yield
    finally:
        _then.generation = before


def reason(op: str, backend: str, *tensors: Tensor) -> str | None:
    """Why "auto" leaves a backend out for tensors like these on this machine, or None."""
    device = tensors[0].device
    for ask in at_a_call:
        ask(device)
    failed = _failed.get(device)
    if failed is None:
        known(device)
        failed = _failed[device]
    if not failed:
        return None
    dtype = next((x.dtype for x in tensors if x.is_floating_point()), None)
    return why_out(op, backend, device, dtype)


def why_out(op: str, backend: str, device: torch.device, dtype: torch.dtype | None) -> str | None:
    """The same for a device and a dtype; None where integers alone decide: then in any dtype."""
    known(device)
    failed = _failed[device]
    if failed and (then := getattr(_then, "generation", None)) is not None:
        failed = {row: detail for row, detail in failed.items() if _since[device, row] <= then}
    if dtype is None:
        detail = next((text for row, text in failed.items() if row.startswith(f"{op}/{backend}/")), None)
    else:
        detail = failed.get(str(Row(op, backend, dtype)))
    return None if detail is None else f"failed its check on this machine: {detail}"


def to_dict(device: torch.device) -> dict[str, Any]:
    """The record of a device as plain data, with what it holds for and where it is kept."""
    rows = {}
    for row, verdict in sorted(known(device).items()):
        rows[row] = {"status": verdict.status, "detail": verdict.detail}
        if verdict.output:
            rows[row]["output"] = verdict.output
    return {"file": str(record_path(device)), "key": key(device), "rows": rows}
