"""Reasons under a table: one line for each, with the ops that it holds for."""

from __future__ import annotations

from collections.abc import Iterable


def notes(reasons: Iterable[tuple[str, str, str]], every: Iterable[str], where: str = "") -> list[str]:
    """Lines "backend for ops: reason" from (op, backend, reason); `every` names the ops that make up "every op".

    A table's cell is too narrow for a sentence, and most reasons hold for all ops.
    """
    ops: dict[tuple[str, str], list[str]] = {}
    for op, backend, reason in reasons:
        known = ops.setdefault((backend, reason), [])
        if op not in known:
            known.append(op)
    known_ops = set(every)
    return [
        " for ".join(filter(None, (backend, "every op" if set(names) == known_ops else ", ".join(names))))
        + f"{where}: {reason}"
        for (backend, reason), names in ops.items()
    ]
