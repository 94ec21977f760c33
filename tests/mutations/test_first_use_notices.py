"""Which faults of kernels the check at first use notices: a few of them here, all by `run.py --first-use`."""

from __future__ import annotations

from pathlib import Path

import first_use
import pytest
import run
from mutation import Mutation
from of_triton import TRITON

pytest.importorskip("triton", reason="triton is not installed")
BY_NAME = {mutation.name: mutation for mutation in TRITON}
SEEN = ("kernels/softmax.py: l_i = l_i", "kernels/row_dropout.py: numbers =", "kernels/quantize_per_token.py: rows.to")
"""Of which the call "check" alone sees none: a row of several blocks, numbered dropout, rows that lie apart."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    run.copy_sources(folder)
    return folder


@pytest.mark.parametrize("start", SEEN)
def test_a_fault_is_noticed_that_one_small_call_does_not_show(tree: Path, start: str) -> None:
    (fault,) = (mutation for name, mutation in BY_NAME.items() if name.startswith(start))
    seen, why = first_use.noticed(tree, fault)
    assert seen and " wrong: " in why and "(case check)" not in why


def test_the_list_of_what_is_not_noticed(tree: Path) -> None:
    """It is short, in the page as it is here, and a fault of it is really not noticed."""
    page = (run.ROOT / "docs" / "trust.md").read_text()
    for name, why in first_use.UNNOTICED.items():
        assert f"`{name.split(': ')[1]}` in `{name.split(': ')[0]}`: {why}" in " ".join(page.split()), name
    assert len(first_use.UNNOTICED) <= 4 and first_use.UNNOTICED.keys() <= BY_NAME.keys()
    assert not first_use.noticed(tree, BY_NAME["kernels/bias_gelu_quantize.py: .to(x_ptr.dtype.element_ty)"])[0]


def test_a_kernel_that_raises_is_noticed(tree: Path) -> None:
    fault = Mutation("kernels/kl_div.py", "import triton\n", "import triton\n\nraise ValueError\n", ())
    seen, why = first_use.noticed(tree, fault)
    assert seen and "kl_div/triton/float32 crashed: fwd raised ValueError" in why
    assert first_use.ops_of(run.ROOT, "kernels/attention_bwd_dq.py") == ["attention"]
    assert first_use.ops_of(run.ROOT, "kernels/row_scale.py")[1:]
