"""Faults in the int8 kernels for a CPU, and in how they are built."""

from __future__ import annotations

from mutation import Mutation
from selections import CPU

PRODUCT, LINEAR, ROWS, GELU, VECTORS = (
    f"csrc/cpu/{name}.h" for name in ("product", "int8_linear", "rows", "gelu", "vectors")
)
INT8_CPU = [
    Mutation(LINEAR, "static_cast<int32_t>(128 * total)", "static_cast<int32_t>(127 * total)", CPU),
    Mutation(LINEAR, "first_row + r, panel, own, less + r, sums", "first_row + r, panel, own, less, sums", CPU),
    Mutation(
        VECTORS,
        "kSize<kDtype>, count * kSize<kDtype>);\n  return",
        "kSize<kDtype>, kLanes * kSize<kDtype>);\n  return",
        CPU,
    ),
    Mutation(PRODUCT, "if (k < panel.n_in) step(k, first_bytes(panel.n_in - k));", "", CPU),
    Mutation(
        PRODUCT,
        "_mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88)",
        "_mm512_shuffle_i32x4(t[i + 4], t[i + 8], 0x88)",
        CPU,
    ),
    Mutation(ROWS, "found.scale = counted / 127.0f;", "found.scale = counted * (1.0f / 127.0f);", CPU),
    Mutation(ROWS, "absmax < 0x1p-118f ? 0x1p-118f : absmax", "absmax", CPU),
    Mutation(ROWS, "Vector v = given(i, count) - shift;", "Vector v = given(i, count);", CPU),
    Mutation(ROWS, "row * p.stride_rm + i, count", "row * p.n_cols + i + 1, count", CPU),
    Mutation(GELU, "if_less(z[j], all(0.0f), tail[j], all(1.0f) - tail[j])", "(all(1.0f) - tail[j])", CPU),
    Mutation(VECTORS, "if_more(rest, all_ints(0x7bff),", "if_more(rest, all_ints(0x7fff),", CPU),
    Mutation("csrc/cpu/threads.cpp", "forked = true;", "forked = false;", CPU),
    Mutation("buildsystem/cpu_build.py", "-ffp-contract=off", "-ffp-contract=fast", CPU),
]
