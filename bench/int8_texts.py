"""Texts that no calibration sees: from one word to 256 tokens, in many languages, and code."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import NamedTuple

from . import corpus

CODE = ("textwrap", "heapq", "statistics", "fractions", "shlex", "csv", "calendar", "json.decoder", "copy", "glob")
"""Modules of Python whose functions are texts too."""
FUNCTIONS = 5
"""Of each module."""
WORDS = 48


class Text(NamedTuple):
    kind: str
    text: str


def held_back() -> list[Text]:
    """Several hundred: passages of dev.txt and single words of it, sentences of languages.txt, functions of Python."""
    passages = [text for _, text in corpus.read_corpus(corpus.TEXTS / "dev.txt")]
    found = [Text("passage", text) for text in passages]
    found += [Text("word", word) for word in spread(words_of(passages), WORDS)]
    found += [Text("language", text) for _, text in corpus.read_corpus(corpus.TEXTS / "languages.txt")]
    return found + [Text("code", source) for name in CODE for source in _functions(name)]


def seen() -> list[str]:
    """What a calibration sees: some passages of train.txt, and single words of them."""
    passages = spread([text for _, text in corpus.read_corpus(corpus.TEXTS / "train.txt")], 64)
    return passages + spread(words_of(passages), 32)


def selection(texts: Sequence[Text], every: int) -> list[Text]:
    """Some of each kind."""
    kinds = dict.fromkeys(text.kind for text in texts)
    return [text for kind in kinds for text in [each for each in texts if each.kind == kind][::every]]


def words_of(texts: Sequence[str]) -> list[str]:
    """The plain words of more than three letters, once each."""
    words = {word.strip(".,;:()'\"").lower() for text in texts for word in text.split()}
    return sorted(word for word in words if word.isalpha() and len(word) > 3)


def spread(items: Sequence[str], n: int) -> list[str]:
    """`n` of them, evenly."""
    return [items[i * len(items) // n] for i in range(min(n, len(items)))]


def _functions(name: str) -> list[str]:
    module = importlib.import_module(name)
    own = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == name]
    return [inspect.getsource(function) for function in own[:FUNCTIONS]]
