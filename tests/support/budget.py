"""A pytest plugin for machines that have pytest and nothing besides: a time limit a test, a deadline, a line a result.

    python -m pytest -p tests.support.budget ...

FASTTX_TEST_LOG names a file that gets one JSON line a test as soon as its outcome is known, so that a run that is
killed leaves what it had.  FASTTX_TEST_SECONDS limits a test (SIGALRM); after FASTTX_TEST_DEADLINE (Unix time) the rest
is skipped with that reason.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

LOG = os.environ.get("FASTTX_TEST_LOG", "")
SECONDS = int(os.environ.get("FASTTX_TEST_SECONDS", "0"))
DEADLINE = float(os.environ.get("FASTTX_TEST_DEADLINE", "inf"))


class TestTimeoutError(Exception):
    """Not an AssertionError: a test that hangs did not find a wrong result."""


def _write(nodeid: str, outcome: str, seconds: float, detail: str) -> None:
    if LOG:
        line = {"test": nodeid, "outcome": outcome, "seconds": round(seconds, 3), "detail": detail[:300]}
        with open(LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _last_line(report: Any) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[-1])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr or "")
    return (text.strip().splitlines() or [""])[0]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > DEADLINE:
        pytest.skip("time budget spent")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if not SECONDS or not hasattr(signal, "SIGALRM"):
        yield
        return

    def give_up(*_: object) -> None:
        raise TestTimeoutError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        outcome = "error" if report.when != "call" and report.failed else report.outcome
        _write(report.nodeid, outcome, report.duration, _last_line(report))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.outcome != "passed":
        _write(report.nodeid, "not collected" if report.failed else "skipped", 0.0, _last_line(report))
