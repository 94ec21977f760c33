"""Every op in every dtype: at the rows and lengths of its workloads, and around its block boundaries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from fasttx.ops import OPS
from fasttx.ops.cases import case as small_case
from fasttx.ops.cases import cases as small_cases
from fasttx.ops.registry import Op

from ..accuracy import judge
from ..op_case import BF16, FP16, FP32, OpCase, Workload
from ..workloads import (
    WORKLOADS,
    add_layer_norm_quantize,
    attention,
    bias_gelu,
    bias_gelu_quantize,
    binary_cross_entropy,
    cross_entropy,
    dropout_add_layer_norm,
    embedding_layer_norm,
    int8_linear,
    kl_div,
    linear_cross_entropy,
    quantize_per_token,
    softmax,
)
from .item import Context, Item, Line
from .launch import launch
from .ops import line_of

DTYPES = {"bf16": BF16, "fp16": FP16, "fp32": FP32}
"""By value."""


def cases() -> list[Workload]:
    """The benchmark's workloads, and each op in each dtype around its block boundaries."""
    found = list(WORKLOADS)
    for short, dtype in DTYPES.items():
        for seqlen in (1, 63, 129, 257):
            found.append(attention(f"attention-s{seqlen}-{short}", 3, seqlen, 2, 64, dtype))
        found += [
            attention(f"attention-d128-dropout-{short}", 2, 200, 2, 128, dtype, dropout_p=0.25),
            attention(f"attention-d32-packed-{short}", 4, 130, 3, 32, dtype, ragged="packed"),
            attention(f"attention-d80-mask-{short}", 4, 130, 3, 80, dtype, ragged="mask"),
            attention(f"attention-d256-causal-{short}", 1, 150, 2, 256, dtype, causal=True),
            softmax(f"softmax-odd-{short}", 37, 1025, dtype),
            softmax(f"softmax-one-{short}", 5, 1, dtype),
            softmax(f"softmax-long-{short}", 3, 100_003, dtype),
            dropout_add_layer_norm(f"layer_norm-odd-{short}", 37, 1025, dtype, residual=False),
            dropout_add_layer_norm(f"layer_norm-many-{short}", 5003, 384, dtype),
            dropout_add_layer_norm(f"layer_norm-dropout-{short}", 37, 8192, dtype, dropout_p=0.25),
            bias_gelu(f"bias_gelu-odd-{short}", 37, 1025, dtype, tanh=True),
            bias_gelu(f"bias_gelu-many-{short}", 5003, 1536, dtype),
            bias_gelu(f"bias_gelu-dropout-{short}", 37, 4096, dtype, dropout_p=0.25),
            embedding_layer_norm(f"embedding_layer_norm-{short}", 7, 31, 384, 1000, dtype, dropout_p=0.25),
            embedding_layer_norm(f"embedding_layer_norm-one-type-{short}", 3, 7, 1025, 1000, dtype, types=1),
            cross_entropy(f"cross_entropy-odd-{short}", 37, 1025, dtype),
            cross_entropy(f"cross_entropy-smoothed-{short}", 37, 30_522, dtype, smoothing=0.1),
            linear_cross_entropy(f"linear_cross_entropy-odd-{short}", 37, 30_522, 61, dtype),
            binary_cross_entropy(f"binary_cross_entropy-odd-{short}", 37, 1025, dtype),
            kl_div(f"kl_div-odd-{short}", 37, 1025, dtype),
            quantize_per_token(f"quantize_per_token-odd-{short}", 37, 1025, dtype),
            quantize_per_token(f"quantize_per_token-long-{short}", 5, 16_384, dtype),
            add_layer_norm_quantize(f"add_layer_norm_quantize-odd-{short}", 37, 1025, dtype),
            add_layer_norm_quantize(f"add_layer_norm_quantize-long-{short}", 5, 8192, dtype),
            bias_gelu_quantize(f"bias_gelu_quantize-odd-{short}", 37, 1025, dtype, tanh=True),
            bias_gelu_quantize(f"bias_gelu_quantize-long-{short}", 5, 16_384, dtype),
        ]
    for n_rows, n_in, n_out in ((1, 768, 768), (63, 700, 130), (300, 33, 65), (400, 720, 3072), (3000, 1040, 999)):
        for activation in ("none", "gelu", "gelu_tanh"):
            found.append(
                int8_linear(f"int8_linear-{n_rows}x{n_in}x{n_out}-{activation}", n_rows, n_in, n_out, activation)
            )
    return found


def small_calls() -> list[Workload]:
    """The small calls of the table of ops, with masks, windows, lengths, packed tokens and options, in each dtype."""
    found = []
    for short, dtype in DTYPES.items():
        for op in OPS.values():
            dropout = op.fwd.argument_names().index("dropout_p") if "dropout_p" in op.fwd.argument_names() else None
            for name, arguments in small_cases(op, torch.device("meta"), dtype):
                if arguments[0].numel() == 0:
                    continue  # nothing is launched

                def build(
                    device: torch.device,
                    size: str,
                    seed: int,
                    op: Op = op,
                    name: str = name,
                    dtype: torch.dtype = dtype,
                ) -> OpCase:
                    return OpCase(list(small_case(op, name, device, dtype)), {})

                drawn = dropout is not None and arguments[dropout] > 0.0
                found.append(Workload(f"{op.name}-case-{name}-{short}", op.name, build, drawn))
    return found


def in_order(found: list[Workload]) -> list[Workload]:
    """bf16 first, then fp16, then the rest, each in the order of the list."""
    places = {short: place for place, short in enumerate(DTYPES)}
    return sorted(found, key=lambda w: places.get(w.name.rsplit("-", 1)[-1], 0))


def run(workload: Workload, context: Context) -> Iterator[Line]:
    if context.dry:
        yield from launch(workload, context, ("check",))
        return
    op = OPS[workload.op]
    case = workload.build(context.device, "tiny", 0)
    reason = op.reasons(*op.fwd.key_tensors([*case.args, "triton"])).get("triton")
    if reason is not None:
        yield {"text": f"no kernel: {reason}"}
        return
    dtype = str(case.args[0].dtype).removeprefix("torch.")
    for direction, judged in judge(workload, op, context.device, context.checked, "triton").items():
        yield line_of(workload, direction, judged) | {"dtype": dtype, "backend": "triton"}


def items(context: Context) -> list[Item]:
    found = in_order(cases() + small_calls())
    if context.rehearsal:
        found = list({workload.op: workload for workload in reversed(found)}.values())
    return [Item(workload.name, partial(run, workload)) for workload in found]
