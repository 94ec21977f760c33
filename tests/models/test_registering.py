"""Who makes transformers know attn_implementation="fasttx", in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODEL = """
config = transformers.BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1,
                                 intermediate_size=8, attn_implementation="fasttx")
model = transformers.BertModel(config)
assert model.config._attn_implementation == "fasttx"
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("first", ["import transformers, fasttx", "import fasttx.models, transformers"])
def test_transformers_knows_the_attention(first: str) -> None:
    done = run(f"{first}{MODEL}")
    assert done.returncode == 0, done.stderr


def test_an_old_transformers_is_no_obstacle() -> None:
    """One without the registries, as transformers 4 is: `import fasttx` works, and touches none of it."""
    code = "import sys, types; sys.modules['transformers'] = types.ModuleType('transformers'); import fasttx; "
    done = run(code + "assert 'fasttx.models' not in sys.modules")
    assert done.returncode == 0, done.stderr
