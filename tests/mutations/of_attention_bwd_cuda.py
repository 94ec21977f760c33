"""Faults in attention's backward in CUDA C++."""

from __future__ import annotations

from mutation import Mutation
from selections import ATTENTION_BWD_CUDA, RACES_OF_ATTENTION_BWD

FOLDER = "csrc/attention"

ATTENTION_BWD = [
    Mutation(
        f"{FOLDER}/bwd_dkdv_sm80.cuh",
        "          __syncthreads();  // dS: written by each warp, read by all\n",
        "",
        RACES_OF_ATTENTION_BWD,
    ),
    Mutation(f"{FOLDER}/bwd_dkdv_sm80.cuh", "first / kBlockM : 0;", "first / kBlockM + 1 : 0;", ATTENTION_BWD_CUDA),
    Mutation(f"{FOLDER}/bwd_dkdv_sm80.cuh", "n0 - work.shift - shape", "n0 + work.shift - shape", ATTENTION_BWD_CUDA),
    Mutation(
        f"{FOLDER}/bwd_dkdv_sm80.cuh",
        "(work.h + head) * shape.bias_strides",
        "(work.h + 0 * head) * shape.bias_strides",
        ATTENTION_BWD_CUDA,
    ),
    Mutation(f"{FOLDER}/bwd_dkdv_sm80.cuh", "total.y + sum[j][1]", "sum[j][1]", ATTENTION_BWD_CUDA),
    Mutation(f"{FOLDER}/dropout_transposed.cuh", "= odd ? got : own;", "= own;", ATTENTION_BWD_CUDA),
    Mutation(f"{FOLDER}/dropout_transposed.cuh", "upper ? kept[1] : kept[0]", "kept[0]", ATTENTION_BWD_CUDA),
    Mutation(f"{FOLDER}/bwd_rows_sm80.cuh", "upper ? kept[2 * r + 1]", "!upper ? kept[2 * r + 1]", ATTENTION_BWD_CUDA),
    Mutation(f"{FOLDER}/bwd_delta.cuh", "= delta / a.keep_scale;", "= delta;", ATTENTION_BWD_CUDA),
    Mutation(f"{FOLDER}/bwd_delta.cuh", "-INFINITY ? INFINITY : lse", "-INFINITY ? lse : lse", ATTENTION_BWD_CUDA),
    Mutation(f"{FOLDER}/bwd_dq_sm80.cuh", "    cp_async_wait<0>();\n    __sync", "    __sync", ATTENTION_BWD_CUDA),
    Mutation(f"{FOLDER}/bwd_dq_sm80.cuh", "sum, shape.softmax_scale);", "sum, 1.0f);", ATTENTION_BWD_CUDA),
    Mutation(f"{FOLDER}/bwd_dbias_sm80.cuh", " + sum[x / 2][x % 2 + 2];", ";", ATTENTION_BWD_CUDA),
    Mutation(
        f"{FOLDER}/bwd_dbias_sm80.cuh", "for (int w = 0; w < kWarps", "for (int w = 1; w < kWarps", ATTENTION_BWD_CUDA
    ),
    Mutation(f"{FOLDER}/attention_bwd_sm80.cu", "with_dq <= current_device().shared_bytes", "true", ATTENTION_BWD_CUDA),
]
