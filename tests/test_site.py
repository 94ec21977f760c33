"""The site: every public name has its entry, and links into the tree lead to pages of the site or become text."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import site_pages


@pytest.mark.parametrize("name", site_pages.PUBLIC)
def test_the_reference_has_every_public_name(name: str) -> None:
    module = importlib.import_module(name)
    page = site_pages.reference(name)
    wanted = [public for public in module.__all__ if not inspect.ismodule(getattr(module, public))]
    entries = [line for line in page.splitlines() if line.startswith("::: ")]
    assert wanted and [entry.rpartition(".")[2] for entry in entries[: len(wanted)]] == wanted
    for entry in entries:
        home, _, attribute = entry.removeprefix("::: ").rpartition(".")
        assert hasattr(importlib.import_module(home), attribute)


@pytest.mark.parametrize(
    ("page", "text", "wanted"),
    [
        ("index.md", "[padding](docs/padding_free.md#data)", "[padding](padding_free.md#data)"),
        ("index.md", "# fasttx ![tests](../../actions/workflows/ci.yml/badge.svg)", "# fasttx "),
        ("index.md", "[how](CONTRIBUTING.md)", "[how](contributing.md)"),
        ("kernels/softmax.md", "[design](../design.md)", "[design](../design.md)"),
        ("verification.md", "[its page](../tests/emulator/README.md)", "[its page](emulator.md)"),
        ("emulator.md", "[page](../../docs/verification.md)", "[page](verification.md)"),
        ("padding_free.md", "[a folder](../bench/texts)", "a folder"),
        ("convergence.md", "![curves](images/convergence.png)", "![curves](images/convergence.png)"),
        ("faq.md", "[elsewhere](https://example.org/a.md)", "[elsewhere](https://example.org/a.md)"),
        ("faq.md", "[here](#answers)", "[here](#answers)"),
        ("cli.md", "([trust.md](trust.md))", "([Kernels are checked on your machine before they are used](trust.md))"),
        ("index.md", "[docs/cli.md](docs/cli.md)", "[The command line](cli.md)"),
    ],
)
def test_links_into_the_tree(page: str, text: str, wanted: str) -> None:
    assert site_pages.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page))) == wanted


def test_names_in_docstrings_lose_the_role_that_sphinx_needs() -> None:
    html = "see :func:<code>fasttx.patch</code> and :class:<code>~torch.Tensor</code>"
    assert site_pages.on_page_content(html) == "see <code>fasttx.patch</code> and <code>torch.Tensor</code>"
