"""Ops that memory decides, int8 and the vocabulary's loss, beside the device copy, eager PyTorch and fasttx._C."""

from __future__ import annotations

from fasttx.ops.cuda import launch as cuda

from ..peers import Peer
from ..workloads import EXPECTED, WORKLOADS
from .item import Context, Item
from .timed import items_of


def _eagerly(name: str, peer: Peer | str) -> bool:
    return isinstance(peer, Peer) and not peer.compiled


def items(context: Context) -> list[Item]:
    names = dict.fromkeys(name for name, _ in EXPECTED)
    workloads = [w for w in WORKLOADS if w.name in names]
    if context.rehearsal:
        workloads = workloads[:1]
    beside = ("cuda",) if context.device.type == "cuda" and cuda.built_for() is not None else ()
    return items_of(workloads, _eagerly, EXPECTED, beside)
