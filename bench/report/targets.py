"""The project's goals: the one list, from which docs/targets.md and the report of results are made.

python -m bench.report.targets > docs/targets.md
"""

from __future__ import annotations

from .kernel_targets import KERNEL_TARGETS
from .model_targets import MODEL_TARGETS

TARGETS = (*KERNEL_TARGETS, *MODEL_TARGETS)

INTRO = """# Targets

What fasttx is to reach. This page lists the goals, not what is reached: `python -m fasttx bench report results` puts
the measured figures beside them ([benchmarks](benchmarks.md)).

A figure counts only if both sides ran in the same process, in turn, and if the result was compared with a higher
precision in the same run: its error may be at most twice that of PyTorch's own operator. On a GPU the goals are for one
NVIDIA H200 and bf16. "2 x" means twice as fast. Only real tokens count. A goal for several shapes has to be reached by
each of them. No op may store a matrix of tokens by tokens or of tokens by vocabulary; tests hold that.
"""


def markdown() -> str:
    """docs/targets.md."""
    lines = [INTRO, "| | what | goal | beside | command |", "|---|---|---|---|---|"]
    for target in TARGETS:
        last = ""
        for i, goal in enumerate(target.goals):
            name, what = (target.name, target.what) if i == 0 else ("", "")
            command = goal.command or target.command
            shown = "none yet" if not goal.places else "" if command == last else f"`{command}`"
            last = command if goal.places else last
            lines.append(f"| {name} | {what} | {goal.text()} | {goal.beside} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
