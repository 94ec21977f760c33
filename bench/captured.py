"""A step as a CUDA graph, which is replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .timer import Call


def captured(step: Callable[[], object], device: torch.device) -> Call:
    """The step as a CUDA graph that is replayed; on a CPU it is called again."""
    if device.type != "cuda":
        return lambda _: step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles the kernels, fills the caches
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return lambda _: graph.replay()
