"""Attention of 128 to 4096 tokens beside cuDNN's and flash attention; with dropout, packed, and other head sizes."""

from __future__ import annotations

from ..workloads import WORKLOADS, attention
from .item import Context, Item
from .timed import items_of

PEERS = ("sdpa[cudnn]", "sdpa[flash]", "varlen_attn")
EXPECTED = {
    ("attention-bert-base-s128", "fwd"): "140 to 180 TFLOP/s",
    ("attention-bert-base-s128", "bwd"): "150 to 200 TFLOP/s",
    ("attention-bert-base-s512", "fwd"): "290 to 340 TFLOP/s",
    ("attention-bert-base-s512", "bwd"): "170 to 220 TFLOP/s",
    ("attention-bert-base-s512-dropout", "fwd"): "0.7 of the rate without dropout",
    ("attention-bert-base-s512-dropout", "bwd"): "0.6 of the rate without dropout",
    ("attention-bert-base-s512-ragged-packed", "fwd"): "0.9 to 1.0 of the rate a visible pair of equal lengths",
    ("attention-d64-s1024", "fwd"): "330 to 390 TFLOP/s, 0.9 of cuDNN's",
    ("attention-d64-s2048", "bwd"): "230 to 290 TFLOP/s",
    ("attention-d64-s4096", "fwd"): "330 to 390 TFLOP/s, 0.9 of cuDNN's",
    ("attention-d64-s4096", "bwd"): "230 to 290 TFLOP/s",
}
ORDER = (
    "attention-bert-base-s512",
    "attention-bert-base-s128",
    "attention-bert-base-s512-dropout",
    "attention-d64-s4096",
    "attention-d64-s1024",
    "attention-d64-s2048",
    "attention-bert-base-s512-ragged-packed",
    "attention-minilm-d32-s256",
    "attention-d128-s2048",
)


def items(context: Context) -> list[Item]:
    by_name = {w.name: w for w in (*WORKLOADS, attention("attention-d64-s2048", 8, 2048, 32, 64))}
    workloads = [by_name[name] for name in context.some(ORDER, 1)]
    return items_of(workloads, lambda name, _: name in PEERS, EXPECTED)
