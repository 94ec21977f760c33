"""What the tables say of each goal: our figure, the best peer's, and whether the goal is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .goals import Goal, Target
from .queries import Figure
from .results import Table
from .targets import TARGETS

GPU = "H200"
"""The one that goals on a GPU are meant for; another one's figures are shown, and not judged."""
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Verdict:
    """One goal on one machine; without a table it is not measured, and `met` says so."""

    target: Target
    goal: Goal
    met: str
    figure: Figure | None = None
    table: Table | None = None

    @property
    def ratio(self) -> str:
        """How many times as fast as the peer; "" where no peer is compared with."""
        return f"{self.figure.value:.2f}" if self.figure and self.figure.peer and self.goal.unit in ("x", "") else ""

    @property
    def asked(self) -> str:
        return self.goal.text(self.figure.asked if self.figure else None)

    @property
    def hardware(self) -> str:
        return f"{self.table.machine}, commit {self.table.commit[:7]}" if self.table else ""

    @property
    def command(self) -> str:
        return (self.goal.command or self.target.command) if self.goal.places else "none yet"


def _judged(target: Target, goal: Goal, table: Table) -> Verdict | None:
    """The figure that is furthest from the goal, among all places in this table."""
    by_place = [list(place.find(table)) for place in goal.places]
    found = [figure for figures in by_place for figure in figures]
    if not found:
        return None

    def distance(figure: Figure) -> float:
        asked = goal.asked if figure.asked is None else figure.asked
        share = figure.value / asked if asked else figure.value
        return -share if goal.most else share

    worst = min(found, key=distance)
    answered = sum(map(bool, by_place))
    if target.gpu and GPU not in table.machine:
        met = f"not an {GPU}"
    elif not all(map(goal.met, found)):
        met = NO
    else:
        met = YES if answered == len(by_place) else f"so far: {answered} of {len(by_place)}"
    return Verdict(target, goal, met, worst, table)


def verdicts(tables: Sequence[Table]) -> list[Verdict]:
    """Every goal in order: one verdict for each file that answers it, or one that says it is not measured."""
    found = []
    for target in TARGETS:
        for goal in target.goals:
            fitting = [table for table in tables if table.rows and table.gpu == target.gpu]
            judged = [v for table in fitting if (v := _judged(target, goal, table)) is not None]
            missing = "not measured on a GPU yet" if target.gpu else "not measured yet"
            found += judged or [Verdict(target, goal, missing)]
    return found


def summary(found: Sequence[Verdict]) -> str:
    """The verdicts in one sentence, goals counted once."""
    goals = list(dict.fromkeys(id(v.goal) for v in found))
    by_goal = [[v.met for v in found if id(v.goal) == goal] for goal in goals]
    met = sum(all(each == YES for each in mets) for mets in by_goal)
    missed = sum(NO in mets for mets in by_goal)
    rest = len(goals) - met - missed
    return f"Of {len(goals)} goals {met} are met, {missed} are not, and {rest} are not measured."
