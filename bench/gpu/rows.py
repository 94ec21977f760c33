"""Ops that memory decides, int8 and the vocabulary's loss, beside the device copy, eager PyTorch and fasttx._C."""

from __future__ import annotations

from fasttx.ops.cuda import launch as cuda

from ..peers import Peer
from ..workloads import WORKLOADS
from .item import Context, Item
from .timed import items_of

EXPECTED = {
    ("softmax-16384x1024", "fwd"): "0.9 of the copy rate",
    ("softmax-4096x30522", "fwd"): "0.5 to 0.65 of the copy rate with 2-byte accesses, 0.85 without",
    ("cross_entropy-bert-mlm-4096x30522", "fwd"): "0.85 to 0.9 of the copy rate",
    ("cross_entropy-bert-mlm-4096x30522", "bwd"): "0.85 to 0.9 of the copy rate",
    ("dropout_add_layer_norm-bert-base-16384x768", "fwd"): "0.8 to 0.85 of the copy rate",
    ("dropout_add_layer_norm-bert-base-16384x768", "bwd"): "0.45 to 0.6 of the copy rate",
    ("dropout_add_layer_norm-16384x1024-inference", "fwd"): "0.85 to 0.95 of the copy rate",
    ("bias_gelu-bert-base-16384x3072", "fwd"): "0.66 to 0.74 of the copy rate with libdevice's erf, 0.9 without",
    ("bias_gelu-bert-base-16384x3072", "bwd"): "0.8 to 0.88 of the copy rate",
    ("bias_gelu-tanh-dropout-16384x4096", "fwd"): "0.9 of the copy rate",
    ("embedding_layer_norm-bert-base-32x512", "fwd"): "0.7 to 0.9 of the copy rate",
    ("int8_linear-bert-base-mlp-16384x768x3072-gelu", "fwd"): "90 to 120 us",
    ("quantize_per_token-16384x768", "fwd"): "13 to 16 us",
    ("add_layer_norm_quantize-16384x1024", "fwd"): "28 to 32 us",
    ("bias_gelu_quantize-16384x4096", "fwd"): "50 to 60 us",
    ("linear_cross_entropy-bert-mlm-4096x30522", "fwd"): "0.4 ms",
    ("linear_cross_entropy-bert-mlm-4096x30522", "bwd"): "1.0 ms",
    ("kl_div-4096x30522", "fwd"): "0.95 of the copy rate",
    ("binary_cross_entropy-8192x1024", "fwd"): "even with torch.compile",
}
REHEARSED = "bias_gelu-bert-base"


def _eagerly(name: str, peer: Peer | str) -> bool:
    return isinstance(peer, Peer) and not peer.compiled


def items(context: Context) -> list[Item]:
    names = dict.fromkeys(name for name, _ in EXPECTED)
    workloads = [w for w in WORKLOADS if w.name in names]
    if context.rehearsal:
        workloads = [w for w in workloads if w.name.startswith(REHEARSED)]
    beside = ("cuda",) if context.device.type == "cuda" and cuda.built_for() is not None else ()
    return items_of(workloads, _eagerly, EXPECTED, beside)
