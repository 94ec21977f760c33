"""Faults in the int8 product in CUDA C++."""

from __future__ import annotations

from mutation import Mutation
from selections import INT8_CUDA, RACES_OF_INT8

PRODUCT, EPILOGUE = "csrc/int8_linear/int8_product_sm80.cuh", "csrc/int8_linear/int8_epilogue.cuh"
KERNEL = "csrc/int8_linear/int8_linear_sm80.cuh"
INT8 = [
    Mutation(PRODUCT, "__syncthreads();  // this stage", "// this stage", RACES_OF_INT8),
    Mutation(PRODUCT, "cp_async_wait<kStages - 2>();", "cp_async_wait<kStages - 1>();", RACES_OF_INT8),
    Mutation(PRODUCT, "  __syncthreads();  // the ring: read by all, given to the epilogue\n", "", RACES_OF_INT8),
    Mutation(
        PRODUCT, "ldmatrix(a[i], stage + (a0 ^ 32 * slice)", "ldmatrix(a[i], stage + (a0 + 32 * slice)", INT8_CUDA
    ),
    Mutation(PRODUCT, "const int rows = left_ > 0 ? rows_ : 0;", "const int rows = rows_;", INT8_CUDA),
    Mutation(PRODUCT, "if (aligned && left >= 4 * w + 4) {", "if (aligned && left > 4 * w) {", INT8_CUDA),
    Mutation(
        PRODUCT,
        "stage + Shape::kStageBytes < Shape::kRingBytes ?",
        "stage + 2 * Shape::kStageBytes < Shape::kRingBytes ?",
        RACES_OF_INT8,
    ),
    Mutation(EPILOGUE, "k < Shape::kOf.warps_k; k++", "k < 1; k++", INT8_CUDA),
    Mutation(
        EPILOGUE,
        "warp * Shape::kWarpM + pass * 16 * kFragments + within",
        "warp * Shape::kWarpM + pass * kFragments + within",
        INT8_CUDA,
    ),
    Mutation(
        EPILOGUE,
        "if (pass + 1 < Shape::kOf.passes) __syncthreads();",
        "if (pass > Shape::kOf.passes) __syncthreads();",
        RACES_OF_INT8,
    ),
    Mutation(EPILOGUE, "|| col + kRowRun > p.n_out) return;", "|| col > p.n_out) return;", RACES_OF_INT8),
    Mutation(EPILOGUE, "whole = is_vector_aligned(at);", "whole = true;", INT8_CUDA),
    Mutation(
        KERNEL,
        "blocks_m - first_m < kGroup ? blocks_m - first_m : kGroup",
        "blocks_m < kGroup ? blocks_m : kGroup",
        INT8_CUDA,
    ),
    Mutation(
        KERNEL,
        "const int64_t row0 = (first_m + within % rows_of_group)",
        "const int64_t row0 = (within % rows_of_group)",
        INT8_CUDA,
    ),
]
