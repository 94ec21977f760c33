"""Writes train.txt and dev.txt beside this file: passages of the Python language reference, labelled by their subject.

The text is the one every CPython carries for `help()` (pydoc_data.topics). A line is ``label<TAB>text``. Passages do
not overlap, no paragraph occurs twice, and lengths run from a few words to several paragraphs on purpose: what the demo
shows depends on batches whose lengths differ. The same Python version gives the same bytes; another one gives a little
more or less text, which is why the two files are committed.

    python bench/texts/make_corpus.py [--out DIR]
"""

from __future__ import annotations

import argparse
import random
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

SUBJECTS: dict[str, str] = {
    "debugger": "debugger",
    "formatting": "formatstrings strings",
    "types": "string-methods typesmapping typesseq typesseq-mutable typesmethods typesmodules typesfunctions "
    "bltin-code-objects",
    "objects": "attribute-access customization callable-types numeric-types sequence-types context-managers "
    "specialattrs specialnames types objects id-classes",
    "expressions": "comparisons calls binary booleans subscriptions slicings power shifting bitwise unary in lambda "
    "attribute-references atom-identifiers atom-literals conversions dict lists exprlists operator-summary",
    "statements": "assignment import try with for while if function class async raise return del global nonlocal "
    "assert augassign pass break continue yield compound",
}
"""Label -> topics. Some topics repeat others' paragraphs; the first mention here owns a paragraph."""

LONGEST = 320
"""Words of the longest passage: more than any model input of the demo, so that truncation happens too."""


def paragraphs(topic: str) -> Iterator[str]:
    """The prose paragraphs of one topic: headings, grammars, code and tables left out, one line each."""
    for block in re.split(r"\n\s*\n", textwrap.dedent(topics[topic])):
        lines = block.splitlines()
        marked = any(re.match(r"\s*([=*\-~^+|]{3,}|>>>|\.\.\. )", line) or "::=" in line for line in lines)
        text = re.sub(r"\s+", " ", re.sub(r"(\*\*?|``?)(\S[^*`]*?)\1", r"\2", block)).strip()
        if not marked and len(text.split()) >= 5 and text[-1] in ".:)" and re.search(r"\b(the|is|a|are|of)\b", text):
            yield text


def passages(texts: list[str], draw: random.Random) -> Iterator[str]:
    """Cuts a run of paragraphs into passages of very different lengths: sentences, paragraphs, several together."""
    waiting = list(reversed(texts))
    while waiting:
        text, kind = waiting.pop(), draw.random()
        if kind < 0.3:  # sentences, each a line of its own
            yield from (s for s in re.split(r"(?<=[.]) (?=[A-Z])", text) if len(s.split()) >= 4)
            continue
        target = draw.choice((90, 180, LONGEST)) if kind > 0.85 else 0
        while waiting and len(text.split()) + len(waiting[-1].split()) <= target:
            text += " " + waiting.pop()
        yield " ".join(text.split()[:LONGEST])


def corpus(seed: int = 0) -> tuple[list[str], list[str]]:
    """Returns the lines of train and dev: one passage in six, drawn at random, goes to dev."""
    draw, seen, lines = random.Random(seed), set(), []
    for label, names in SUBJECTS.items():
        for name in names.split():
            fresh = [p for p in paragraphs(name) if not (p in seen or seen.add(p))]
            lines += [f"{label}\t{text}" for text in passages(fresh, draw)]
    lines = sorted(set(lines))
    draw.shuffle(lines)
    n_dev = len(lines) // 6
    return lines[n_dev:], lines[:n_dev]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    for name, lines in zip(("train.txt", "dev.txt"), corpus(), strict=True):
        (out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        words = sorted(len(line.split("\t")[1].split()) for line in lines)
        print(f"{out / name}: {len(lines)} lines of {words[0]} to {words[-1]} words, median {words[len(words) // 2]}")


if __name__ == "__main__":
    main()
