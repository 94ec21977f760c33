"""The names of the backends, and which of them is forced: for a block, or for the process by ``FASTTX_BACKEND``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .checks import wrong

BACKENDS = ("cuda", "triton", "cpu", "torch")


class BackendError(RuntimeError):
    """A backend that was asked for cannot run the call; the message says which, and why."""


_ALLOWED = frozenset(("auto", *BACKENDS))
_forced = os.environ.get("FASTTX_BACKEND", "auto")  # judged at the first use: an import must not fail for it


def wrong_name(where: str, name: str) -> str | None:
    """What is wrong with the name of a backend, found in the argument or variable `where`; None if nothing is."""
    return (
        None
        if isinstance(name, str) and name in _ALLOWED
        else wrong(where, repr(name), f"'auto', {', '.join(map(repr, BACKENDS))}")
    )


def forced_backend() -> str:
    """The backend in force: ``"auto"``, or the name given to :class:`backend` or ``FASTTX_BACKEND``.

    Raises:
        BackendError: ``FASTTX_BACKEND`` holds an unknown name.
    """
    if _forced not in _ALLOWED:
        raise BackendError(wrong_name("FASTTX_BACKEND", _forced))
    return _forced


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force every op of the whole process, all threads, to one backend within the ``with`` block.

    Args:
        name: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"torch"``, or ``"auto"`` for the default choice.

    Raises:
        BackendError: at once, if the name is unknown, here or in ``FASTTX_BACKEND``; later, if an op is called that
            this backend cannot run. A forced backend never falls back.
    """
    global _forced
    problem = wrong_name("backend", name)
    if problem is not None:
        raise BackendError(problem)
    before, _forced = forced_backend(), name
    try:
        yield
    finally:
        _forced = before
