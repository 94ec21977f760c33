"""What a patch did, as an object that prints as a table."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..ops import OPS
from ..ops.backends import BackendError, forced_backend
from ..ops.cases import like
from ..ops.verdicts import Verdict
from . import layout

COLUMNS = ("module", "from", "to", "backend", "reason")


@dataclass(frozen=True)
class Row:
    """One module that was looked at.

    Attributes:
        module: its name within the patched model; "" is the model itself.
        before: what ran.
        after: what runs now; None if the module was left alone.
        backend: which backend is expected to run it on the device where it is now; "" if it was left alone.
        reason: why it was left alone, or what else there is to know.
        here: whether a replacement changes what runs on the device where it is now; most fusions wait for a GPU.
        ops: which ops of the table may compute it.
    """

    module: str
    before: str
    after: str | None
    backend: str
    reason: str
    here: bool = True
    ops: tuple[str, ...] = ()

    @property
    def replaced(self) -> bool:
        return self.after is not None

    def to_dict(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "from": self.before,
            "to": self.after,
            "backend": self.backend,
            "reason": self.reason,
            "here": self.replaced and self.here,
        }


@dataclass
class Report:
    """What :func:`fasttx.patch` or :func:`fasttx.quantize` did.

    ``print(report)`` shows it in as many columns as the terminal has, ``report.rows`` holds it, ``to_dict()`` is JSON.

    Attributes:
        model: the class of the model.
        rows: one per module that was replaced or left alone.
        call: the function that made the report.
        tuned: what `python -m fasttx tune` measured to be faster than the default for the parts that were replaced,
            in words, from the device and "name/dtype/regime"; empty where nothing was.
        checks: what is known of the kernels that the model may run, from the device and "op/backend/dtype" to the
            verdict of their check on this machine; empty where no kernel would run. A check of a model that was moved
            meanwhile is added.
        checks_later: whether the kernels are checked when the model first runs on a GPU.
    """

    model: str
    rows: list[Row] = field(default_factory=list)
    call: str = "fasttx.patch"
    checks: dict[str, dict[str, Verdict]] = field(default_factory=dict)
    checks_later: bool = False
    tuned: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def replaced(self) -> list[Row]:
        """The modules that were replaced; ``row.here`` says whether that changes anything on the device they are on."""
        return [row for row in self.rows if row.replaced]

    @property
    def left_alone(self) -> list[Row]:
        """The modules that run as before; each says why."""
        return [row for row in self.rows if not row.replaced]

    @property
    def ops(self) -> list[str]:
        """The ops of the table that what was replaced may call."""
        return [op for op in dict.fromkeys(op for row in self.replaced for op in row.ops) if op in OPS]

    def reasons(self) -> list[str]:
        """ "module: reason" for what was left alone, layers of the same kind together."""
        return [f"{cells[0]}: {cells[-1]}" for cells in _collapsed(self.left_alone)]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        checks = {
            device: {row: {"status": found.status, "detail": found.detail} for row, found in rows.items()}
            for device, rows in self.checks.items()
        }
        return {"model": self.model, "rows": [row.to_dict() for row in self.rows], "checks": checks} | {
            "tuned": {device: dict(found) for device, found in self.tuned.items()}
        }

    def counts(self) -> str:
        """How much was replaced, and how much was not, in words."""
        here = sum(row.here for row in self.replaced)
        later = len(self.replaced) - here
        on_gpu = f"{later} that change on a GPU only, " if later else ""
        return f"{here} replaced, {on_gpu}{len(self.left_alone)} left alone"

    def __str__(self) -> str:
        head = layout.heading(f"{self.call}({self.model}): {self.counts()}")
        if not self.rows:
            return head
        rows = _collapsed(self.rows)
        widths = [max(map(len, cells)) for cells in zip(COLUMNS, *rows)]
        checks = self._checks()
        if sum(widths) + 2 * (len(widths) - 1) <= layout.columns():
            return "\n".join([head, *layout.table(COLUMNS, rows), *checks])
        blocks: dict[str, list[str]] = {}
        for row in rows:
            blocks.setdefault(row[0], []).extend(_block(row))
        return "\n".join([head, *(line for module, lines in blocks.items() for line in (module, *lines)), *checks])

    def _checks(self) -> list[str]:
        """Lines about what the check of the kernels on this machine has found, and what was measured there."""
        lines = []
        if self.checks_later and not self.checks:
            lines += layout.wrapped("kernels were not checked: that happens when the model first runs on a GPU", "")
        for device, rows in self.checks.items():
            right = sum(found.status == "ok" for found in rows.values())
            lines.append(f"{right} of {len(rows)} kernels for {device} were checked on this machine and are right")
            for row, found in rows.items():
                if found.status != "ok":
                    then = "is left out" if found.failed else "is used"
                    lines += layout.wrapped(f"{row} {found.status}: {found.detail}; it {then}")
        for device, words in self.tuned.items():
            lines.append(f"what was measured on this machine (python -m fasttx tune) decides on {device}:")
            for item, why in words.items():
                lines += layout.wrapped(f"{item}: {why}")
        return lines

    __repr__ = __str__


def _block(row: tuple[str, ...]) -> list[str]:
    """What one row says of its module, as lines of its own: for a terminal that is too narrow for a table."""
    _, before, after, backend, reason = row
    change = f"{before}: {after}" if backend == "-" else f"{before} -> {after} ({backend})"
    return [*layout.wrapped(change, "  "), *layout.wrapped(reason)]


def _collapsed(rows: list[Row]) -> list[tuple[str, ...]]:
    """Cells to print; rows that differ only in the numbers of their layers become one."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", row.module)
        key = (pattern, row.before, row.after or "left alone", row.backend or "-", row.reason)
        groups.setdefault(key, []).append(row.module)
    out = []
    for (pattern, *cells), modules in groups.items():
        name = modules[0] if len(modules) == 1 else f"{pattern} ({len(modules)}x)"
        out.append((name or "(the model)", *cells))
    return out


def expected_backend(op: str, requested: str, module: nn.Module) -> str:
    """The backend that would run an op of a patched module on the device and dtype that it has now.

    Args:
        op: name in the table of ops.
        requested: ``"auto"`` or a backend's name.
        module: its first floating parameter tells device and dtype.
    """
    if requested == "auto":
        requested = forced_backend()
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    if parameter is None or parameter.device.type == "meta":
        return requested
    examples = like(OPS[op], parameter.device, parameter.dtype, _width(op, module))
    try:
        return OPS[op].runs(requested, *examples)
    except BackendError as problem:
        return f"{requested}, which cannot run here: {str(problem).split('cannot run this call: ')[-1]}"


def _width(op: str, module: Any) -> int | None:
    """The length of the rows that the op would get, as far as a module tells."""
    if op == "attention":
        return getattr(module, "attention_head_size", getattr(module, "head_dim", None))
    norm = next((child for child in module.modules() if isinstance(child, nn.LayerNorm)), None)
    return norm.normalized_shape[-1] if norm is not None and op.endswith("layer_norm") else None
