"""How a figure is found in the tables that benchmarks write: where it stands, and what it is compared with.

A query looks into one :class:`bench.results.Table` and gives what it finds there, worst first, or nothing. Only rows
whose result was right count: a row of ours with another status than "ok" has no figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .results import Row, Table, number


@dataclass(frozen=True)
class Figure:
    """What one place says: `value` is held against the goal, or against `asked` where the goal hangs on the place."""

    value: float
    ours: str
    peer: str = ""
    asked: float | None = None
    where: str = ""


def among(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of these; a ``*`` at the end stands for anything."""
    return any(name == p or (p.endswith("*") and name.startswith(p[:-1])) for p in patterns)


def duration(ms: float) -> str:
    """A time in the unit that keeps it readable."""
    return f"{ms * 1e3:.3g} us" if ms < 1 else f"{ms:.4g} ms"


def _time(row: Row) -> float | None:
    """First quartile on a CPU, where other work only adds; the median on a GPU."""
    return number(row, "low_ms" if row.get("device") == "cpu" else "median_ms")


def _best(rows: Iterable[Row], column: str, names: Sequence[str]) -> tuple[float, Row] | None:
    """The fastest of the named arms or peers that has a time. One that is inexact counts: people use it."""
    found = [
        (time, row)
        for row in rows
        if among(str(row[column]), names) and row.get("status", "ok") in ("ok", "inexact")
        if (time := _time(row)) is not None
    ]
    return min(found, key=lambda each: each[0], default=None)


@dataclass(frozen=True)
class Kernel:
    """An op on one workload.

    Attributes:
        direction: "fwd", "bwd", "step" or "fwd+bwd".
        peers: names in the table; the fastest counts.
        rate: asks for a rate of ours in place of a ratio.
        plus: workloads whose time is part of ours too.
    """

    workload: str
    direction: str
    peers: tuple[str, ...] = ()
    rate: str = ""
    plus: tuple[str, ...] = ()

    def _sides(self, table: Table, workload: str) -> list[list[Row]]:
        rows = [r for r in table.rows if r["workload"] == workload and r.get("inputs", "cold") != "hot"]
        return [[r for r in rows if r["direction"] == side] for side in self.direction.split("+")]

    def ours(self, table: Table, workload: str) -> list[Row] | None:
        """Our fastest row of each direction."""
        best = [
            _best([r for r in rows if r["status"] == "ok"], "peer", ("fasttx*",))
            for rows in self._sides(table, workload)
        ]
        return None if None in best else [each[1] for each in best if each]

    def find(self, table: Table) -> Iterator[Figure]:
        if table.kind != "kernels":
            return
        names = (self.workload, *self.plus)
        each = [found for name in names if (found := self.ours(table, name)) is not None]
        if len(each) < len(names):
            return
        ours = [row for rows in each for row in rows]
        time, where = sum(_time(r) or 0.0 for r in ours), f"{self.workload} {self.direction}"
        if self.rate:
            value = number(ours[0], self.rate)
            if value is not None:
                yield Figure(value, f"{value:.4g} {'TFLOP/s' if self.rate == 'tflops' else 'GB/s'}", where=where)
            return
        sums: dict[str, float] = defaultdict(float)
        sides = self._sides(table, self.workload)
        for name in {str(r["peer"]) for rows in sides for r in rows if among(str(r["peer"]), self.peers)}:
            times = [_best(rows, "peer", (name,)) for rows in sides]
            if None not in times:
                sums[name] = sum(each[0] for each in times if each)
        if sums:
            name = min(sums, key=lambda n: sums[n])
            yield Figure(sums[name] / time, duration(time), f"{name}, {duration(sums[name])}", where=where)


@dataclass(frozen=True)
class Rates:
    """Our rate on one workload over our rate on another, both directions together: what dropout or raggedness costs."""

    workload: str
    than: str
    direction: str = "fwd+bwd"

    def find(self, table: Table) -> Iterator[Figure]:
        if table.kind != "kernels":
            return
        kernel, rates = Kernel(self.workload, self.direction), []
        for name in (self.workload, self.than):
            rows = kernel.ours(table, name)
            if not rows or any(number(r, "tflops") is None for r in rows):
                return
            flop = sum((number(r, "tflops") or 0.0) * (_time(r) or 0.0) for r in rows)
            rates.append(flop / sum(_time(r) or 0.0 for r in rows))
        here, there = (f"{rate:.4g} TFLOP/s" for rate in rates)
        yield Figure(rates[0] / rates[1], here, f"fasttx, {self.than}: {there}", where=self.workload)


@dataclass(frozen=True)
class Model:
    """A step of a model. Without `peers` the figure is our column `value`: a rate, or with `over` a share of that."""

    model: str
    task: str
    lengths: str
    seqlen: int
    peers: tuple[str, ...] = ()
    value: str = ""
    over: float = 1.0
    batch: int | None = None

    def _groups(self, table: Table) -> Iterator[list[Row]]:
        """Rows that were timed in the same turns."""
        groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
        for row in table.rows:
            same = (row["model"], row["task"], row["lengths"]) == (self.model, self.task, self.lengths)
            longest = number(row, "seqlen") or 0.0  # of the lengths that were drawn
            if same and 0.75 * self.seqlen < longest <= self.seqlen and self.batch in (None, number(row, "batch")):
                groups[row.get("stage"), row.get("item"), row.get("comparison")].append(row)
        yield from groups.values()

    def find(self, table: Table) -> Iterator[Figure]:
        found = []
        where = f"{self.model}, {self.task}, {self.seqlen} tokens"
        for rows in self._groups(table) if table.kind == "model" else ():
            ours = _best([r for r in rows if r["status"] == "ok"], "arm", ("fasttx*",))
            peer = _best(rows, "arm", self.peers) if self.peers else None
            if ours is None:
                continue
            if self.value and not self.peers:
                value = number(ours[1], self.value)
                if value is not None:
                    said = f"{value:,.0f} a second ({ours[1]['arm']})"
                    peer_said = f"MLPerf, {self.over:,.0f} a second" if self.over != 1.0 else ""
                    found.append(Figure(value / self.over, said, peer_said, where=where))
            elif self.value and peer is not None:  # a share of the peer's: memory
                mine, other = number(ours[1], self.value), number(peer[1], self.value)
                if mine is not None and other:
                    found.append(
                        Figure(mine / other, f"{mine:.0f} MiB", f"{peer[1]['arm']}, {other:.0f} MiB", where=where)
                    )
            elif peer is not None:
                said = f"{duration(ours[0])} ({ours[1]['arm']})"
                found.append(Figure(peer[0] / ours[0], said, f"{peer[1]['arm']}, {duration(peer[0])}", where=where))
        if found:
            yield (min if self.value and self.peers else max)(found, key=lambda f: f.value)


@dataclass(frozen=True)
class Latency:
    """p50 of one request, from bench.serving; without `peers` the time itself."""

    target: str
    peers: tuple[str, ...] = ()

    def find(self, table: Table) -> Iterator[Figure]:
        if table.kind != "serving":
            return
        rows = [r for r in table.rows if r["target"] == self.target and r["status"] == "ok"]
        times = [(t, str(r["arm"])) for r in rows if (t := number(r, "p50_ms")) is not None]
        ours = min((each for each in times if each[1].startswith("fasttx")), default=None)
        peer = min((each for each in times if among(each[1], self.peers)), default=None)
        if ours and not self.peers:
            yield Figure(ours[0], f"{duration(ours[0])} ({ours[1]})")
        elif ours and peer:
            yield Figure(peer[0] / ours[0], f"{duration(ours[0])} ({ours[1]})", f"{peer[1]}, {duration(peer[0])}")
