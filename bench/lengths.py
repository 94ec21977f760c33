"""Lengths of the rows of a batch, by the name of a distribution and a seed.

``full`` has no padding, ``even`` spreads from seqlen / batch to seqlen; the others are real texts, given by their 41
quantiles (0 %, 2.5 %, ... 100 %) and cut at seqlen, as truncation does:

wikipedia   what BERT is pretrained on at 512: pairs of passages of Wikipedia, 23 % of them of full length, mean 256.
            Quantiles of the histogram that goes with arXiv:2107.02027 (Graphcore's examples, packedBERT), 16.3 M rows.
squad       questions with their passages (SQuAD 1.1 at 384), mean 172: quantiles of the second histogram there.
passages    sentences and paragraphs of an English manual (bench/texts), in WordPieces of uncased BERT, mean 64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

QUANTILES: dict[str, tuple[int, ...]] = {
    "wikipedia": (
        5,
        29,
        36,
        42,
        48,
        53,
        59,
        64,
        70,
        77,
        84,
        92,
        100,
        110,
        120,
        131,
        143,
        157,
        171,
        187,
        204,
        222,
        243,
        264,
        288,
        314,
        342,
        373,
        407,
        444,
        484,
        512,
        512,
        512,
        512,
        512,
        512,
        512,
        512,
        512,
        512,
    ),
    "squad": (
        36,
        68,
        84,
        97,
        107,
        113,
        117,
        121,
        124,
        127,
        130,
        133,
        135,
        138,
        141,
        144,
        147,
        150,
        153,
        156,
        159,
        163,
        166,
        170,
        174,
        178,
        182,
        187,
        191,
        197,
        203,
        210,
        217,
        225,
        235,
        247,
        260,
        276,
        299,
        338,
        384,
    ),
    "passages": (
        8,
        11,
        13,
        14,
        15,
        17,
        18,
        19,
        20,
        21,
        22,
        23,
        24,
        25,
        27,
        28,
        30,
        32,
        33,
        35,
        36,
        38,
        40,
        42,
        44,
        47,
        51,
        53,
        58,
        62,
        66,
        70,
        78,
        85,
        97,
        110,
        132,
        169,
        229,
        321,
        646,
    ),
}
NAMES = ("full", "even", *QUANTILES)


def draw(name: str, batch: int, seqlen: int, seed: int = 0) -> Tensor:
    """`batch` lengths (int64, on the CPU) of at most `seqlen`, in random order.

    One is drawn from each 1/batch of the distribution, so that even a small batch has about its mean.

    Raises:
        ValueError: no distribution has that name.
    """
    if name not in NAMES:
        raise ValueError(f"lengths: got {name!r}; allowed are {', '.join(NAMES)}")
    import torch

    generator = torch.Generator().manual_seed(seed)
    if name == "full":
        return torch.full((batch,), seqlen)
    order = torch.randperm(batch, generator=generator)
    if name == "even":
        return torch.linspace(min(seqlen, max(2, seqlen // batch)), seqlen, batch).long()[order]
    known = torch.tensor(QUANTILES[name], dtype=torch.float64)
    at = (torch.arange(batch) + torch.rand(batch, generator=generator, dtype=torch.float64)) / batch * (len(known) - 1)
    below = at.long().clamp(max=len(known) - 2)
    found = torch.lerp(known[below], known[below + 1], at - below)
    return found.round().long().clamp(1, seqlen)[order]
