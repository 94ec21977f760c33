"""The Python of the pages runs, each section after the page's opening, and prints what its lines promise."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from models.test_pretrained import directory

import fasttx

ROOT = Path(__file__).resolve().parent.parent
STARTS = sorted(f"docs/start/{page.name}" for page in (ROOT / "docs" / "start").glob("*.md"))
COMPLETE = (
    "docs/distributed.md",
    "docs/faq.md",
    "docs/export.md",
    "docs/migration.md",
    "docs/compression.md",
    "docs/reproducible_embeddings.md",
    *STARTS,
)
"""Pages whose sections need nothing but the page's opening."""
PAGES = (*COMPLETE, "README.md", "docs/data.md", "docs/patching.md", "docs/int8.md", "docs/ops.md")
NAMES = ("sentence-transformers/all-MiniLM-L6-v2", "bert-base-uncased")
SLOW = {("docs/export.md", heading) for heading in ("ONNX", "AOTInductor", "int8")}
NEEDS = {"ONNX": ("onnx", "onnxscript", "onnxruntime"), "LoRA on int8": ("peft",)}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def sections(page: str) -> dict[str, list[str]]:
    """Heading -> the blocks of Python below it, the page's opening first; only those of which there are any."""
    opening, *parts = re.split(r"^## ", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)
    found = {part.split("\n", 1)[0]: BLOCK.findall(part) for part in parts}
    return {heading: [*BLOCK.findall(opening), *blocks] for heading, blocks in found.items() if blocks}


CASES = [
    pytest.param(
        page,
        heading,
        id=f"{Path(page).stem}-{re.sub(r'[^a-z]+', '-', heading.lower()).strip('-')}",
        marks=[pytest.mark.slow] * ((page, heading) in SLOW),
    )
    for page in PAGES
    for heading in sections(page)
]


class Dataset:
    """Examples by number and columns by name, as Hugging Face's datasets have them."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.columns = dict(tokenizer(texts))

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, key: Any) -> Any:
        return self.columns[key] if isinstance(key, str) else {k: v[key] for k, v in self.columns.items()}


def what_users_have() -> dict[str, Any]:
    """The names that pages for readers with a model of their own take as given."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(NAMES[0])
    texts = ["A short text.", "A text of a few more words than that.", "One."]
    linear, norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)
    weight, scale = fasttx.functional.quantize_per_channel(linear.weight.detach())
    names = {
        name: getattr(transformers, name) for name in ("DataCollatorForLanguageModeling", "DataCollatorWithPadding")
    }
    return names | {
        "model": transformers.AutoModelForMaskedLM.from_pretrained(NAMES[0]),
        "tokenizer": tokenizer,
        "batch": dict(tokenizer(texts, padding=True, return_tensors="pt")),
        "dataset": Dataset(tokenizer, texts),
        "DataLoader": torch.utils.data.DataLoader,
        "Trainer": pytest.importorskip("transformers").Trainer,
        "accelerator": pytest.importorskip("accelerate").Accelerator(cpu=True),
        "world_size": 1,
        **dict.fromkeys(("x", "attended"), torch.randn(3, 8)),
        **dict.fromkeys(("w1", "w2"), weight),
        **dict.fromkeys(("w1_scale", "w2_scale"), scale),
        **dict.fromkeys(("bias1", "bias2"), linear.bias.detach()),
        "norm": norm.requires_grad_(False),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "heading"), CASES)
def test_a_section_runs_and_prints_what_it_promises(
    page: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in NEEDS.get(heading, ()):
        pytest.importorskip(module)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(directory())  # what from_pretrained takes before it asks the hub
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"} | ({} if page in COMPLETE else what_users_have())
    for block in sections(page)[heading]:
        promised = re.findall(r"# prints (.*)$", block, re.M)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, f"{page}: {heading}", "exec"), names)
        assert [line for line in printed.getvalue().splitlines() if line in promised] == promised


def test_pages_promise_something() -> None:
    for page in COMPLETE:
        blocks = [block for blocks in sections(page).values() for block in blocks]
        assert sum("# prints " in block for block in blocks) >= 3, page
