"""What `tune` measured on this machine: where something other than the default is the fastest way that is right.

The table is a file for each kind of device, beside the record of checks (:mod:`fasttx.ops.verdicts`), from
"name/dtype/regime" to a :class:`Measured`; :mod:`fasttx.trust.tune` makes it. Here it is read, once a process and
device, at the first question: forward and backward of a call thus go by the same table. One of another version, device,
driver or number of threads is not looked at, and what is cut short or no such file counts as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import verdicts
from .availability import cpu_model
from .checks import wrong
from .regimes import dtype_of, regimes_of

SWITCH = "FASTTX_TUNED"
"""The environment variable that switches tables off with "0"."""


class Measured(NamedTuple):
    """What was measured of one name, dtype and regime.

    Attributes:
        takes: what "auto" takes here.
        default: what it takes without a measurement.
        own: which of them is PyTorch's own way.
        gains: of each that is right, how many times as fast as the default it is.
        left_out: of the others, why.
        ms: medians in milliseconds, by example and by what ran.
        quick: measured by ``tune --quick``, which a whole run measures again.
    """

    takes: str
    default: str
    own: str
    gains: dict[str, float]
    left_out: dict[str, str]
    ms: dict[str, dict[str, float]]
    quick: bool

    @property
    def gain(self) -> float | None:
        """How many times as fast as the default it is, what "auto" takes; None if the default is not right."""
        return self.gains[self.takes] if self.default in self.gains else None

    @property
    def gain_on_own(self) -> float | None:
        """The same beside PyTorch's own way."""
        return self.gains[self.takes] / self.gains[self.own] if self.own in self.gains else None

    @classmethod
    def of(cls, found: dict[str, Any]) -> Measured:
        """From plain data.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """
        takes, default, own = texts = [found[name] for name in ("takes", "default", "own")]
        gains = {str(name): float(gain) for name, gain in dict(found["gains"]).items()}
        left_out = {str(name): str(why) for name, why in dict(found["left_out"]).items()}
        ms = {str(name): {str(k): float(t) for k, t in each.items()} for name, each in dict(found["ms"]).items()}
        if not all(isinstance(text, str) for text in texts) or not all(gain > 0.0 for gain in gains.values()):
            raise ValueError(wrong("measured", found, "names, and gains above 0"))
        if takes not in gains:
            raise ValueError(wrong("takes", repr(takes), f"what was measured, {list(gains)}"))
        return cls(takes, default, own, gains, left_out, ms, bool(found["quick"]))


_Overrides = dict[tuple[str, torch.dtype], dict[str, str]]
_tables: dict[torch.device, dict[str, Measured]] = {}
_overrides: dict[torch.device, _Overrides] = {}
"""Where a table says otherwise than the default: by name and dtype, from the regime to what is taken."""


def key(device: torch.device) -> dict[str, str]:
    """What a table holds for: what a record of checks does, and on a CPU which one, and how many threads."""
    found = verdicts.key(device)
    return found | {"cpu": cpu_model(), "threads": str(torch.get_num_threads())} if device.type == "cpu" else found


def table_path(device: torch.device) -> Any:
    """The file with the table of this kind of device."""
    name = hashlib.sha256(json.dumps(key(device), sort_keys=True).encode()).hexdigest()[:16]
    return verdicts.cache_folder() / f"tuned-{name}.json"


def read(device: torch.device) -> dict[str, Measured]:
    """The table of a device as its file has it now, from "name/dtype/regime"; empty where there is none."""
    try:
        found = json.loads(table_path(device).read_text(encoding="utf-8"))
        if found["key"] != key(device):
            return {}
        return {str(name): Measured.of(each) for name, each in found["measured"].items()}
    except (OSError, RuntimeError, AssertionError):  # no file, or no such device
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):  # cut short, or something else
        return {}


def known(device: torch.device) -> dict[str, Measured]:
    """The table that holds in this process; the file is read at the first question."""
    if device not in _tables:
        table = {} if os.environ.get(SWITCH) == "0" else read(device)
        overrides: _Overrides = {}
        for name, measured in table.items():
            what, dtype, regime = name.split("/", 2)
            if measured.takes != measured.default:
                overrides.setdefault((what, getattr(torch, dtype)), {})[regime] = measured.takes
        _overrides[device] = overrides
        _tables[device] = table  # at last: another thread may ask meanwhile
    return _tables[device]


def forget() -> None:
    """Asks the files again at the next question."""
    _tables.clear()
    _overrides.clear()


def _of(device: torch.device) -> _Overrides:
    overrides = _overrides.get(device)
    if overrides is None:
        known(device)
        overrides = _overrides[device]
    return overrides


@contextlib.contextmanager
def taking(name: str, device: torch.device, dtype: torch.dtype, option: str, regimes: Iterable[str]) -> Iterator[None]:
    """Takes an option in these regimes within the ``with`` block, and of everything else the default: to measure it."""
    before = _overrides.get(device)
    _overrides[device] = {(name, dtype): dict.fromkeys(regimes, option)}
    try:
        yield
    finally:
        if before is None:
            del _overrides[device]
        else:
            _overrides[device] = before


def backend_of(op: str, *tensors: Tensor) -> str | None:
    """The backend that is faster than the default for tensors like these; None where that is the default.

    Where sizes are being traced there is no answer: what is called there asks again when it runs, and an exported
    program shall not hang on the machine that made it.
    """
    overrides = _of(tensors[0].device)
    if not overrides or torch.compiler.is_compiling():
        return None
    regimes = overrides.get((op, dtype_of(*tensors)))
    return None if regimes is None else regimes.get(regimes_of(op).name_of(*tensors))


def has_any(device: torch.device) -> bool:
    """Whether a table takes anything else than the default on a device."""
    return bool(_of(device))


def differs(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a table says otherwise than the default in any regime; dynamo takes the answer as a constant."""
    return (name, dtype) in _of(device)


def option_of(name: str, device: torch.device, dtype: torch.dtype, regime: str) -> str:
    """What a table takes in place of the default, or ""; dynamo takes the answer as a constant."""
    return _of(device).get((name, dtype), {}).get(regime, "")


def reason_if_other(name: str, device: torch.device, dtype: torch.dtype, regime: str) -> str:
    """In words, why something else than the default is taken in a regime, or ""; a constant for dynamo, too."""
    return reason(name, device, dtype, regime) if option_of(name, device, dtype, regime) else ""


def reason(name: str, device: torch.device, dtype: torch.dtype, regime: str) -> str:
    """In words, what was measured in a regime."""
    found = known(device).get(f"{name}/{str(dtype).removeprefix('torch.')}/{regime}")
    if found is None:
        return ""
    if found.gain is None:
        return f"measured on this machine: {found.default} is not right there"
    return f"measured on this machine: {found.gain:.2f} times as fast as {found.default}"


# What torch.compiler.assume_constant_result does, without its import of dynamo, which takes seconds.
differs._dynamo_marked_constant = True  # type: ignore[attr-defined]
option_of._dynamo_marked_constant = True  # type: ignore[attr-defined]
reason_if_other._dynamo_marked_constant = True  # type: ignore[attr-defined]


def to_dict(device: torch.device) -> dict[str, Any]:
    """The table of a device as plain data, with what it holds for and where it is kept."""
    table = {name: each._asdict() | {"gain": each.gain} for name, each in sorted(read(device).items())}
    is_used = os.environ.get(SWITCH) != "0"
    return {"file": str(table_path(device)), "key": key(device), "is_used": is_used, "measured": table}
