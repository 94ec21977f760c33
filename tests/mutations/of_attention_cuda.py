"""Faults in attention in CUDA C++."""

from __future__ import annotations

from mutation import Mutation
from selections import ATTENTION_CUDA, RACES_OF_ATTENTION

FORWARD, MASKING, DROPOUT = (f"csrc/attention/{name}.cuh" for name in ("fwd_sm80", "masking", "dropout"))
SOFTMAX, TILES, WORK = (f"csrc/attention/{name}.cuh" for name in ("online_softmax", "fragments_sm80", "work"))
ATTENTION = [
    Mutation(
        FORWARD,
        "    cp_async_wait<0>();\n    __syncthreads();  // this",
        "    __syncthreads();  // this",
        RACES_OF_ATTENTION,
    ),
    Mutation(FORWARD, "    __syncthreads();  // this stage", "    // this stage", RACES_OF_ATTENTION),
    Mutation(FORWARD, "    __syncthreads();  // read by all; tiles", "    // read by all; tiles", RACES_OF_ATTENTION),
    Mutation(FORWARD, "if (row >= rows || column", "if (row > rows || column", ATTENTION_CUDA),
    Mutation(FORWARD, "if (aligned && column + 8 <= columns) {", "if (aligned) {", RACES_OF_ATTENTION),
    Mutation(FORWARD, "keep_scale = 256.0f /", "keep_scale = 255.0f /", ATTENTION_CUDA),
    Mutation(FORWARD, "n0 / F::kKeys % 2 * F::kStage", "n0 / F::kKeys % 1 * F::kStage", RACES_OF_ATTENTION),
    Mutation(MASKING, "    __syncthreads();  // partials: written by each warp, read by all\n", "", RACES_OF_ATTENTION),
    Mutation(MASKING, "at_key <= at_query + right;", "at_key < at_query + right;", ATTENTION_CUDA),
    Mutation(MASKING, "key + kKeyRange - 1 <= query + right;", "key <= query + right;", ATTENTION_CUDA),
    Mutation(MASKING, "to_float(bias) <= kLowestHalf ?", "to_float(bias) < kLowestHalf ?", ATTENTION_CUDA),
    Mutation(DROPOUT, "pair(kept[r % 2 * 2 + 1], r / 2 != 0)", "pair(kept[r % 2 * 2], r / 2 != 0)", ATTENTION_CUDA),
    Mutation(DROPOUT, "either(threshold <= 128 ?", "either(threshold < 128 ?", ATTENTION_CUDA),
    Mutation(SOFTMAX, "m_new <= kMasked ? 0.0f : m_new;", "m_new;", ATTENTION_CUDA),
    Mutation(SOFTMAX, "l[r] = l[r] * alpha[r] + sum;", "l[r] = l[r] + sum;", ATTENTION_CUDA),
    Mutation(TILES, "(address ^ 2 * columns % kLine)", "(address + 2 * columns % kLine)", ATTENTION_CUDA),
    Mutation(
        TILES,
        "aligned(is_vector_aligned(data) && stride % kVectorWidth<T> == 0)",
        "aligned(is_vector_aligned(data))",
        ATTENTION_CUDA,
    ),
    Mutation(TILES, "row + tile_row + r < rows && left > 0", "row + tile_row + r <= rows && left > 0", ATTENTION_CUDA),
    Mutation(WORK, "h_k(h / (shape.num_heads / shape.num_heads_k)),", "h_k(h % shape.num_heads_k),", ATTENTION_CUDA),
    Mutation(WORK, "at.end, lost, team);", "at.end, none, team);", ATTENTION_CUDA),
]
