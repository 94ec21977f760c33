"""What a host of the repository reads: workflows call targets that exist, and every file parses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import fasttx

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
if not WORKFLOWS:
    pytest.skip("not a git checkout", allow_module_level=True)


def commands(workflow: Path) -> list[str]:
    """What its steps run, with each value of a matrix put in."""
    found = []
    for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values():
        matrix: dict[str, list[Any]] = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            lines = [step.get("run", "")]
            for name, values in matrix.items():
                lines = [line.replace(f"${{{{ matrix.{name} }}}}", str(v)) for line in lines for v in values]
            found += lines
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_that_exist(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    called = {word for line in commands(workflow) if line.startswith("make ") for word in line.split()[1:]}
    assert called and called <= targets
    assert "$" not in "".join(line for line in commands(workflow) if line.startswith("make "))


def test_the_workflows_cover_what_test_all_runs() -> None:
    everything = re.search(r"^test-all: (.*) ##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert everything
    called = {word for path in WORKFLOWS for line in commands(path) for word in line.split()}
    assert set(everything.group(1).split()) <= called


def test_the_forms_ask_for_what_a_maintainer_needs() -> None:
    asked = {form.stem: form.read_text(encoding="utf-8") for form in FORMS}
    assert "python -m fasttx doctor --json" in asked["bug"] and "print(report)" in asked["model"]
    for text in asked.values():
        for field in yaml.safe_load(text)["body"]:
            assert field["type"] in ("textarea", "input") and field["id"] and field["attributes"]["label"]


def test_the_citation_names_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == fasttx.__version__ and cited["license"] == "Apache-2.0"
