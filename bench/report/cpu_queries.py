"""Figures of a CPU for the targets: models on padded and full batches, and what Python costs a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..cpu_cases import INFERENCE, ONE
from .queries import Figure, among, duration
from .results import Row, Table, number

FULL = 0.95
"""A batch with this share of real tokens has no padding to speak of."""
MKL, ONEDNN = 1.0, 1.9
"""What faster products bring: nothing where MKL's are as fast as oneDNN's, on AMD nearly twice."""


def of_products(machine: str) -> float:
    """What the products of this machine's library should bring over PyTorch's own choice."""
    return ONEDNN if "AMD" in machine else MKL


def by_case(table: Table) -> list[list[Row]]:
    """The rows of bench.cpu that have a time, those of one case together."""
    cases: dict[tuple[object, ...], list[Row]] = {}
    for row in table.rows:
        if row["status"] == "ok":
            cases.setdefault((row["model"], row["task"], row["kind"]), []).append(row)
    return list(cases.values())


@dataclass(frozen=True)
class Sentences:
    """MiniLM's embeddings of sentences on a CPU, as bench.cpu measures them: our fastest such arm beside a peer."""

    kind: str
    ours: tuple[str, ...]
    peers: tuple[str, ...]

    def find(self, table: Table) -> Iterator[Figure]:
        for rows in by_case(table) if table.kind == "cpu" else ():
            if (rows[0]["model"], rows[0]["task"], rows[0]["kind"]) != ("minilm", INFERENCE, self.kind):
                continue
            times = [(time, str(r["arm"])) for r in rows if (time := number(r, "ms")) is not None]
            ours = min((each for each in times if among(each[1], self.ours)), default=None)
            peer = min((each for each in times if among(each[1], self.peers)), default=None)
            if ours and peer:
                said = f"{duration(ours[0])} ({ours[1]})"
                yield Figure(peer[0] / ours[0], said, f"{peer[1]}, {duration(peer[0])}", where=self.kind)


@dataclass(frozen=True)
class Cpu:
    """A model on a CPU beside a peer, on batches with padding or without. `asked` None: the goal hangs on the batch."""

    ragged: bool
    peers: tuple[str, ...]
    asked_of_machine: bool = False

    def find(self, table: Table) -> Iterator[Figure]:
        read = {
            "padding": self._padding,
            "demo": self._demo,
            "own": self._own,
            "model": self._model,
            "cpu": self._cpu,
        }.get(table.kind)
        if read is None or table.gpu:
            return
        for figure, real in read(table):
            if (real < FULL) != self.ragged:
                continue
            wanted = of_products(table.machine) / real if self.ragged else of_products(table.machine)
            asked = wanted if self.asked_of_machine else None
            yield Figure(figure.value, figure.ours, figure.peer, asked, f"{figure.where}, {real:.0%} real")

    def _pair(self, ours: float, peer: float, name: str, where: str) -> Figure:
        return Figure(peer / ours, duration(ours), f"{name}, {duration(peer)}", where=where)

    def _padding(self, table: Table) -> Iterator[tuple[Figure, float]]:
        """The widest layers, in the batch that is neither tiny nor short."""
        rows = [r for r in table.rows if (r["hidden"], r["batch"], r["seqlen"]) == ("768", "16", "128")]
        for row in rows if "sdpa" in self.peers else ():
            ours, plain, real = (number(row, name) for name in ("auto_ms", "sdpa_ms", "real"))
            if ours and plain and real:
                yield self._pair(ours, plain, "sdpa", f"layers of 768, 16 x 128, {row['task']}"), real

    def _demo(self, table: Table) -> Iterator[tuple[Figure, float]]:
        for row in table.rows if "sdpa" in self.peers else ():
            ours, plain = number(row, "fasttx_ms"), number(row, "sdpa_ms")
            if ours and plain:
                yield self._pair(ours, plain, "sdpa", f"MiniLM, {row['what']}"), row["real"]

    def _own(self, table: Table) -> Iterator[tuple[Figure, float]]:
        names = {"sdpa": ("as it is",)}
        peers = [each for name in self.peers for each in names.get(name, (name,))]
        for batch in dict.fromkeys(r["batch"] for r in table.rows):
            rows = [r for r in table.rows if r["batch"] == batch and r["status"] == "ok"]
            yield from self._arms(rows, ("fasttx",), peers, "ms", lambda r: f"{r['model']}, batches of {r['batch']}")

    def _model(self, table: Table) -> Iterator[tuple[Figure, float]]:
        def timed_together(row: Row) -> tuple[object, ...]:
            return row.get("comparison"), row["model"], row["task"], row["lengths"], row.get("seqlen")

        for group in dict.fromkeys(map(timed_together, table.rows)):
            rows = [r for r in table.rows if timed_together(r) == group and r["status"] == "ok"]
            yield from self._arms(rows, ("fasttx*",), self.peers, "low_ms", lambda r: f"{r['model']}, {r['task']}")

    def _cpu(self, table: Table) -> Iterator[tuple[Figure, float]]:
        """Batches of sentences, in float32; one sentence alone is no batch."""
        names = {"sdpa": "transformers, fp32"}
        peers = [names.get(name, f"{name}, fp32") for name in self.peers]
        for rows in by_case(table):
            if rows[0]["kind"] != ONE:
                ours = ("fasttx, fp32*",)
                yield from self._arms(rows, ours, peers, "ms", lambda r: f"{r['model']}, {r['task']}, {r['kind']}")

    def _arms(
        self, rows: list[Row], mine: Sequence[str], peers: Sequence[str], column: str, named: Callable[[Row], str]
    ) -> Iterator[tuple[Figure, float]]:
        times = [(time, str(r["arm"])) for r in rows if (time := number(r, column)) is not None]
        ours = min((each for each in times if among(each[1], mine)), default=None)
        peer = min((each for each in times if among(each[1], peers)), default=None)
        real = number(rows[0], "real") if rows else None
        if ours and peer and real:
            yield self._pair(ours[0], peer[0], peer[1], named(rows[0])), real


@dataclass(frozen=True)
class Added:
    """Microseconds that the table of ops adds to forward and backward of an op, beyond one check and one allocation."""

    def find(self, table: Table) -> Iterator[Figure]:
        for op in dict.fromkeys(r["what"] for r in table.rows) if table.kind == "host" else ():
            us = {r["part"]: number(r, "us") for r in table.rows if r["what"] == op}
            added = us.get("added to forward and backward by the table")
            if added is None:
                continue
            apart = (us.get("check") or 0.0) + (us.get("allocation") or 0.0)
            plain = us.get("forward and backward, plain Function")
            peer = f"plain Function, {plain:.0f} us in all" if plain else ""
            yield Figure(added - apart, f"{added - apart:.3g} us", peer, where=op)


@dataclass(frozen=True)
class Layer:
    """A patched layer, or model of two, on so few tokens that Python is what is timed."""

    def find(self, table: Table) -> Iterator[Figure]:
        for row in table.rows if table.kind == "host" else ():
            ratio = number(row, "ratio")
            if row["part"] == "patched / transformers" and ratio:
                us = {r["part"]: number(r, "us") or 0.0 for r in table.rows if r["what"] == row["what"]}
                ours, plain = (duration(us.get(p, 0.0) / 1e3) for p in ("patched", "transformers (sdpa)"))
                yield Figure(1 / ratio, ours, f"transformers, {plain}", where=row["what"])
