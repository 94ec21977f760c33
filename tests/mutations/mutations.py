"""One-line faults that the tests must notice: `make mutate` makes each in a copy of the sources and expects red.

A line that can be wrong without a test noticing is a line that nobody may trust. The list is short on purpose: one of
each kind of mistake that kernels suffer from (a barrier, a bound, a scale, a mask, an index), at least two a kernel
file, and the options that a patch has to pass on.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One fault.

    Attributes:
        file: relative to the project.
        old: text that occurs once in the file; more than the line where the line alone would not.
        new: what stands there instead.
        tests: arguments of pytest; they pass without the fault.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        old, new = self.old.splitlines(), self.new.splitlines()
        changed = next((line for line in old if line not in new), old[0])
        return f"{self.file}: {changed.strip()}"


def op_tests(op: str, *files: str) -> tuple[str, ...]:
    """The rows of an op in the table's own test, and its files."""
    return (*(f"tests/ops/{file}.py" for file in files), f"tests/test_ops.py::{ACCURATE}", "-k", op)


ACCURATE = "test_results_are_as_the_fake_says_and_accurate"
SOFTMAX = op_tests("softmax", "test_softmax")
CROSS_ENTROPY = op_tests("cross_entropy and not binary and not linear", "test_cross_entropy")
BINARY = op_tests("binary_cross_entropy", "test_binary_cross_entropy")
KL_DIV = op_tests("kl_div", "test_kl_div")
LINEAR = op_tests("linear_cross_entropy", "test_linear_cross_entropy")
ATTENTION = op_tests("attention", "test_attention_kernels")
LAYER_NORM = op_tests("dropout_add_layer_norm", "test_dropout_add_layer_norm", "test_dropout_add_layer_norm_memory")
GELU = op_tests("bias_gelu", "test_bias_gelu", "test_bias_gelu_memory")
EMBEDDING = op_tests("embedding_layer_norm", "test_embedding_layer_norm")
INT8 = op_tests("int8_linear", "test_int8_linear")
QUANTIZE = op_tests("quantize_per_token", "test_quantize_per_token")
WRAPPERS = ("tests/emulator/test_emulator_instructions.py::test_each_wrapper_does_what_its_layout_says",)
FAULTS = ("tests/emulator/test_emulator_faults.py",)
INSTRUCTION_FAULTS = ("tests/emulator/test_emulator_instruction_faults.py::test_each_fault_is_reported_at_every_seed",)
WITHOUT_HOOKS = ("tests/emulator/test_emulator_instruction_faults.py::test_what_shows_without_hooks",)
NORM_QUANTIZE = op_tests("add_layer_norm_quantize", "test_add_layer_norm_quantize")
GELU_QUANTIZE = op_tests("bias_gelu_quantize", "test_bias_gelu_quantize")
RACES = ("tests/emulator/test_emulator_kernels.py", "-m", "not slow")
RACES_OF_ROWS = ("tests/emulator/test_emulator_rows.py", "-m", "not slow")
HELD = ("tests/emulator/test_emulator_held_rows.py", "-m", "not slow", "-k", "not no_race")
CLUSTER_LOSSES = ("tests/emulator/test_emulator_cluster_losses.py", "-m", "not slow")
HELD_RACES = ("tests/emulator/test_emulator_held_rows.py", "-m", "not slow", "-k", "no_race")

TRITON = [
    Mutation(
        "kernels/softmax.py",
        "l_i = l_i * tl.exp(m_i - m_safe) + tl.sum(tl.exp(s - m_safe[:, None]), 1)",
        "l_i = l_i + tl.sum(tl.exp(s - m_safe[:, None]), 1)",
        SOFTMAX,
    ),
    Mutation("kernels/softmax.py", 'return tl.where(ok, s, float("-inf"))', "return s", SOFTMAX),
    Mutation(
        "kernels/softmax.py",
        "                keep = row_keep(rng_ptr, rows, start, TAG",
        "                keep = row_keep(rng_ptr, rows, 0, TAG",
        SOFTMAX,
    ),
    Mutation("kernels/softmax.py", "ds = out * (dout - total)", "ds = out * dout", SOFTMAX),
    Mutation(
        "kernels/cross_entropy.py",
        "edge_cols = tl.where(e < lead, e, e + middle)",
        "edge_cols = e",
        CROSS_ENTROPY,
    ),
    Mutation("kernels/cross_entropy.py", "read = read & (y != ignore_index)", "read = read", CROSS_ENTROPY),
    Mutation(
        "kernels/cross_entropy.py", "valid = first + offs < middle", "valid = first + offs <= middle", CROSS_ENTROPY
    ),
    Mutation(
        "kernels/cross_entropy_bwd.py",
        "d -= tl.where(edge_cols == y, at_label, 0.0)",
        "d -= 0.0",
        CROSS_ENTROPY,
    ),
    Mutation(
        "kernels/cross_entropy_bwd.py",
        "                a += per_class * tl.load(w_sum_ptr) if WEIGHTED else smoothing",
        "                a += smoothing",
        CROSS_ENTROPY,
    ),
    Mutation(
        "kernels/cross_entropy_bwd.py",
        "mask=written[:, None] & (cols < n_cols)",
        "mask=valid",
        CROSS_ENTROPY,
    ),
    Mutation(
        "kernels/binary_cross_entropy.py",
        "tl.sum(tl.where(offs < n, loss, 0.0), 0)",
        "tl.sum(loss, 0)",
        BINARY,
    ),
    Mutation(
        "kernels/binary_cross_entropy.py",
        "first = (tl.program_id(0) % period) * (offs.shape[0] % period) % period",
        "first = 0",
        BINARY,
    ),
    Mutation("kernels/kl_div.py", "return -t * (g * scale)", "return -t * g", KL_DIV),
    Mutation("kernels/kl_div.py", "    if LOG:\n        t = tl.exp(t)\n", "", KL_DIV),
    Mutation(
        "kernels/linear_cross_entropy.py",
        "w_acc += tl.where(y == ignore_index, 0.0, w_y)",
        "w_acc += w_y",
        LINEAR,
    ),
    Mutation(
        "kernels/linear_cross_entropy.py",
        "_add_product(dweight_sum, d.t(), x_rows, first == 0)",
        "_add_product(dweight_sum, d.t(), x_rows, True)",
        LINEAR,
    ),
    Mutation("kernels/attention.py", "acc * alpha[:, None]", "acc", ATTENTION),
    Mutation("kernels/attention.py", "tl.load(seqused_k + b)", "tl.load(seqused_k)", ATTENTION),
    Mutation("kernels/attention.py", "partial = n0 + BLOCK_N > n_k", "partial = n0 > n_k", ATTENTION),
    Mutation(
        "kernels/attention.py",
        "frag_mask(seed, rng_offset, head, m0, n0",
        "frag_mask(seed, rng_offset, h, m0, n0",
        ATTENTION,
    ),
    Mutation(
        "kernels/attention_bwd.py",
        "ds = (p * (dp - row_delta)).to(q_tile.dtype)",
        "ds = (p * dp).to(q_tile.dtype)",
        ATTENTION,
    ),
    Mutation(
        "kernels/attention_bwd.py",
        "hi = tl.minimum(hi, n0 + BLOCK_N - shift + window_left)",
        "hi = tl.minimum(hi, n0 + BLOCK_N - shift)",
        ATTENTION,
    ),
    Mutation("kernels/attention_bwd.py", "dv_acc * keep_scale(THRESHOLD)", "dv_acc", ATTENTION),
    Mutation("kernels/attention_bwd_dq.py", "dq_acc * softmax_scale", "dq_acc", ATTENTION),
    Mutation(
        "kernels/attention_bwd_dq.py",
        "dp = tl.where(keep, dp * keep_scale(THRESHOLD), 0.0)",
        "dp = dp * keep_scale(THRESHOLD)",
        ATTENTION,
    ),
    Mutation(
        "kernels/dropout.py", "(0, 5, 1, 2, 4, 7, 3, 6)", "(0, 5, 1, 2, 4, 7, 6, 3)", ("tests/ops/test_dropout.py",)
    ),
    Mutation(
        "kernels/dropout.py",
        "min(max(round(256.0 * dropout_p), 1), 255)",
        "min(round(256.0 * dropout_p), 255)",
        ("tests/ops/test_dropout.py",),
    ),
    Mutation(
        "kernels/row_dropout.py",
        "tl.join(tl.join(w0, w2), tl.join(w1, w3))",
        "tl.join(tl.join(w0, w1), tl.join(w2, w3))",
        ("tests/ops/test_row_dropout.py",),
    ),
    Mutation(
        "kernels/row_dropout.py",
        "numbers = tl.load(index_ptr + rows, mask=row_ok, other=0)",
        "numbers = rows",
        LAYER_NORM,
    ),
    Mutation(
        "kernels/dropout_add_layer_norm.py",
        "d = tl.where(col_ok[None, :], z - mean[:, None], 0.0)",
        "d = z - mean[:, None]",
        LAYER_NORM,
    ),
    Mutation(
        "kernels/dropout_add_layer_norm.py",
        "return (g - c2[:, None] - xhat * c1[:, None]) * rstd[:, None]",
        "return (g - xhat * c1[:, None]) * rstd[:, None]",
        LAYER_NORM,
    ),
    Mutation("kernels/dropout_add_layer_norm.py", "            pid += programs", "            pid += 1", LAYER_NORM),
    Mutation(
        "kernels/bias_gelu.py",
        "out = tl.where(keep, out * keep_scale, 0.0)",
        "out = tl.where(keep, out, 0.0)",
        GELU,
    ),
    Mutation("kernels/bias_gelu.py", "z * (2.0 * slope) * du", "z * slope * du", GELU),
    Mutation(
        "kernels/embedding_layer_norm.py",
        "ids = tl.load(ids_ptr + rows % period",
        "ids = tl.load(ids_ptr + rows // period",
        EMBEDDING,
    ),
    Mutation("kernels/embedding_layer_norm.py", "dtype1 += tl.where(types == 1, dz, 0.0)", "dtype1 += dz", EMBEDDING),
    Mutation(
        "kernels/int8_linear.py",
        "y = acc.to(tl.float32) * x_scale[:, None] * w_scale[None, :]",
        "y = acc.to(tl.float32) * x_scale[:, None]",
        INT8,
    ),
    Mutation(
        "kernels/int8_linear.py",
        "first_m = pid // (GROUP * blocks_n) * GROUP",
        "first_m = pid // (GROUP * blocks_n)",
        INT8,
    ),
    Mutation("kernels/row_scale.py", 'size < float("inf"), size, float("inf")', "size == size, size, 0.0", QUANTIZE),
    Mutation("kernels/row_scale.py", "q = ((v + MAGIC) - MAGIC).to(tl.int8)", "q = v.to(tl.int8)", QUANTIZE),
    Mutation("kernels/quantize_per_token.py", "long_rows * stride_xm", "long_rows * n_cols", QUANTIZE),
    Mutation("kernels/quantize_per_token.py", "mask=ok, other=0.0", "mask=ok, other=1e9", QUANTIZE),
    Mutation(
        "kernels/add_layer_norm_quantize.py",
        "tl.where(col_ok[None, :], out.to(tl.float32), 0.0)",
        "out.to(tl.float32)",
        NORM_QUANTIZE,
    ),
    Mutation("kernels/add_layer_norm_quantize.py", ".to(out_ptr.dtype.element_ty)\n", "\n", NORM_QUANTIZE),
    Mutation("kernels/add_layer_norm_quantize.py", "long_rows * stride_rm", "long_rows * stride_xm", NORM_QUANTIZE),
    Mutation("kernels/bias_gelu_quantize.py", ".to(x_ptr.dtype.element_ty)", "", GELU_QUANTIZE),
    Mutation("kernels/bias_gelu_quantize.py", "long_rows * stride_xm", "long_rows * n_cols", GELU_QUANTIZE),
]

CUDA = [
    Mutation(
        "csrc/common/reductions.cuh",
        "    __syncthreads();  // partials: written by each warp, read by all\n",
        "",
        RACES,
    ),
    Mutation("csrc/common/row_dropout.cuh", "c[i / 4] >> (8 * (i % 4))", "c[i % 4] >> (8 * (i / 4))", SOFTMAX),
    Mutation("csrc/common/row_dropout.cuh", "second ? c[2] : c[0]", "c[0]", LAYER_NORM),
    Mutation("csrc/common/vectors.cuh", "out[i] = i >= low && i < high ?", "out[i] = i < high ?", CROSS_ENTROPY),
    Mutation("csrc/common/vectors.cuh", "(p) % 16 == 0;", "(p) % 4 == 0;", SOFTMAX),  # x86 forgives it, no GPU does
    Mutation("csrc/common/row_parts.cuh", "if (is_vector_aligned(row) && n_cols", "if (n_cols", LAYER_NORM),
    Mutation("csrc/common/online_sum.cuh", "    l *= alpha;\n", "", SOFTMAX),
    Mutation(
        "csrc/common/column_sum.cuh",
        "  __syncthreads();  // sums: written by each warp, read by the first\n",
        "",
        RACES_OF_ROWS,
    ),
    Mutation(
        "csrc/common/column_sum.cuh", "for (int w = 1; w < kSumWarps; w++)", "for (int w = 2; w < kSumWarps; w++)", GELU
    ),
    Mutation(
        "csrc/common/layer_norm.cuh",
        "z[i] = part.column(i) + i % kRowRun < part.n_cols ? z[i] - first : 0.0f;",
        "z[i] = z[i] - first;",
        LAYER_NORM,
    ),
    Mutation(
        "csrc/common/layer_norm.cuh",
        "    __syncthreads();  // shared: written by group `turn`, read by the next\n",
        "",
        RACES_OF_ROWS,
    ),
    Mutation("csrc/softmax/softmax.cuh", "o[i] * (d[i] - total)", "o[i] * d[i]", SOFTMAX),
    Mutation(
        "csrc/softmax/softmax.cuh",
        "    softmax_bwd_kernel(SoftmaxBwdParams p) {\n",
        "    softmax_bwd_kernel(SoftmaxBwdParams p) {\n  p.n_rows += 1;\n",
        RACES,
    ),
    Mutation(
        "csrc/softmax/softmax.cuh",
        "    sum.reduce_part<kGroup>(partials);\n",
        "    sum.reduce<kGroup>(partials);\n",
        HELD,
    ),
    Mutation("csrc/softmax/held_launch.h", "bytes(cluster) + kHeldBesides > device.shared_bytes", "false", HELD),
    Mutation(
        "csrc/common/row_section.cuh",
        "end = first + columns < end ? first + columns : end;",
        "end = static_cast<uint32_t>(n_cols);",
        HELD,
    ),
    Mutation("csrc/common/row_section.cuh", "kTile * kTensors + kTensor;", "kTile * kTensors;", HELD),
    Mutation("csrc/common/row_section.cuh", "(start - first) / kTile", "start / kTile", HELD_RACES),
    Mutation(
        "csrc/common/cluster_reduction.cuh",
        "    cluster_wait();  // values: written by every block, read by all threads\n",
        "",
        HELD_RACES,
    ),
    Mutation("csrc/common/cluster_reduction.cuh", "    cluster_wait();  // every block has started\n", "", HELD),
    Mutation("csrc/common/cluster_reduction.cuh", "values + cluster_rank() * kCount", "values", HELD),
    Mutation(
        "csrc/common/cluster_reduction.cuh",
        "    const float alpha = __expf(exchange.of(rank, 0) - sum.m);\n",
        "    const float alpha = 1.0f;\n",
        HELD,
    ),
    Mutation(
        "csrc/cross_entropy/cross_entropy.cuh",
        "(finite_max(exchange.of(rank, 0)) - sum.m) * exchange.of(rank, 3)",
        "0.0f",
        CLUSTER_LOSSES,
    ),
    Mutation("csrc/cross_entropy/cross_entropy.cuh", "start += blocks * kTile", "start += kTile", CLUSTER_LOSSES),
    Mutation("csrc/common/cluster_size.h", "n_rows * 2 * cluster", "2 * cluster", CLUSTER_LOSSES),
    Mutation(
        "csrc/cross_entropy/cross_entropy.cuh",
        "label = row.shift + static_cast<uint32_t>(y);",
        "label = static_cast<uint32_t>(y);",
        CROSS_ENTROPY,
    ),
    Mutation(
        "csrc/cross_entropy/cross_entropy.cuh",
        "s += (before - after) * c;",
        "s += 0.0f * (before - after) * c;",
        CROSS_ENTROPY,
    ),
    Mutation(
        "csrc/cross_entropy/cross_entropy.cuh",
        "const bool read = written && (p.labels == nullptr || y != p.ignore_index);",
        "const bool read = written;",
        CROSS_ENTROPY,
    ),
    Mutation(
        "csrc/binary_cross_entropy/binary_cross_entropy.cuh",
        "if (static_cast<uint32_t>(k) < run.valid) total",
        "total",
        BINARY,
    ),
    Mutation(
        "csrc/binary_cross_entropy/binary_cross_entropy.cuh",
        "at = at + 1 == period ? 0 : at + 1;",
        "at = at + 1;",
        BINARY,
    ),
    Mutation("csrc/kl_div/kl_div.cuh", "t == 0.0f ? 0.0f : t * logf(t)", "t * logf(t)", KL_DIV),
    Mutation("csrc/kl_div/kl_div.cuh", "tile += gridDim.x", "tile += tiles", KL_DIV),
    Mutation("csrc/kl_div/kl_div.cuh", "-(kLog ? expf(t[k]) : t[k])", "-t[k]", KL_DIV),
    Mutation("csrc/kl_div/kl_div.cuh", "is_vector_aligned(dx), t)", "true, t)", KL_DIV),
    Mutation("csrc/kl_div/kl_div.cuh", "if (p.one_dloss) {", "if (p.one_dloss || run.valid < kKlRun) {", KL_DIV),
    Mutation(
        "csrc/dropout_add_layer_norm/dropout_add_layer_norm.cuh",
        "partial += p.programs * p.n_cols;",
        "partial += p.n_cols;",
        LAYER_NORM,
    ),
    Mutation(
        "csrc/dropout_add_layer_norm/dropout_add_layer_norm.cuh",
        "    apply_kept(bits, p.dropout, dy);\n",
        "",
        LAYER_NORM,
    ),
    Mutation(
        "csrc/bias_gelu/bias_gelu.cuh",
        "  __syncthreads();  // sums: written by every thread, read by the first group\n",
        "",
        RACES_OF_ROWS,
    ),
    Mutation("csrc/bias_gelu/bias_gelu.cuh", "      drop(p.dropout, row, at.col, dx[r]);\n", "", GELU),
    Mutation("csrc/bias_gelu/bias_gelu.cuh", "if (is_vector_aligned(base) && stride", "if (stride", GELU),
    Mutation(
        "csrc/embedding_layer_norm/embedding_layer_norm.cuh",
        "dtype1[i] += type == 1 ? dy[i] : 0.0f;",
        "dtype1[i] += dy[i];",
        EMBEDDING,
    ),
    Mutation(
        "csrc/embedding_layer_norm/embedding_layer_norm.cuh",
        "kEmbeddingTag, row), p.dropout, dy",
        "kLayerNormTag, row), p.dropout, dy",
        EMBEDDING,
    ),
    Mutation(
        "csrc/common/row_scale.cuh",
        "fminf(fmaxf(__fmul_rn(x, inverse), -127.0f), 127.0f)",
        "__fmul_rn(x, inverse)",
        QUANTIZE,
    ),
    Mutation(
        "csrc/common/row_scale.cuh",
        "reinterpret_cast<uintptr_t>(x_q) % kRowRun == 0 && part.n_cols",
        "part.n_cols",
        QUANTIZE,
    ),
    Mutation("csrc/common/row_scale.cuh", "size < INFINITY ? size : INFINITY", "size", QUANTIZE),
    Mutation("csrc/common/row_scale.cuh", " && part.n_cols % kRowRun == 0;", ";", QUANTIZE),
    Mutation("csrc/quantize_per_token/quantize_per_token.cuh", "row * p.stride_xm", "row * p.n_cols", QUANTIZE),
    Mutation(
        "csrc/quantize_per_token/quantize_per_token.cuh", "p.x_scale, p.scale, row", "p.x_scale, nullptr, row", QUANTIZE
    ),
    Mutation(
        "csrc/add_layer_norm_quantize/add_layer_norm_quantize.cuh",
        "  round_to<T>(p.out.dtype, z);\n",
        "",
        NORM_QUANTIZE,
    ),
    Mutation(
        "csrc/add_layer_norm_quantize/add_layer_norm_quantize.cuh",
        "    if (part.column(i) + i % kRowRun >= part.n_cols) z[i] = 0.0f;\n",
        "",
        NORM_QUANTIZE,
    ),
    Mutation(
        "csrc/add_layer_norm_quantize/add_layer_norm_quantize.cuh",
        "partials + 3 * kMaxWarps, z",
        "partials, z",
        RACES_OF_ROWS,
    ),
    Mutation("csrc/bias_gelu_quantize/bias_gelu_quantize.cuh", "  round_to<T>(p.dtype, z);\n", "", GELU_QUANTIZE),
    Mutation(
        "csrc/bias_gelu_quantize/bias_gelu_quantize.cuh",
        "z[item + i] += bias[i]",
        "z[item + i] = bias[i]",
        GELU_QUANTIZE,
    ),
]

# What of csrc/arch the emulator executes; PTX is run on a GPU alone.
ARCH = [
    Mutation("csrc/arch/mma.cuh", "{b0, b1};\n  ::emu::mma_m16n8k32", "{b1, b0};\n  ::emu::mma_m16n8k32", WRAPPERS),
    Mutation("csrc/arch/mma.cuh", "__half> ? ::emu::Element::kF16", "__half> ? ::emu::Element::kBF16", WRAPPERS),
    Mutation("csrc/arch/ldmatrix.cuh", "ldmatrix_x4(r, row, true)", "ldmatrix_x4(r, row, false)", WRAPPERS),
    Mutation("csrc/arch/cp_async.cuh", "global, valid_bytes);\n#else", "global, valid_bytes & 15);\n#else", WRAPPERS),
    Mutation("csrc/arch/cp_async.cuh", "emu::cp_async_wait(kLeft)", "emu::cp_async_wait(kLeft + 1)", WRAPPERS),
    Mutation("csrc/arch/wgmma.cuh", "kTileBytes = 1024", "kTileBytes = 512", WRAPPERS),
    Mutation("csrc/arch/wgmma.cuh", "emu::wgmma_wait(kLeft)", "emu::wgmma_wait(kLeft + 1)", WRAPPERS),
    Mutation("csrc/arch/tma.cuh", "map.fields, barrier, row, column)", "map.fields, barrier, column, row)", WRAPPERS),
    Mutation(
        "csrc/arch/mbarrier.cuh", "mbarrier_arrive(barrier, bytes)", "mbarrier_arrive(barrier, 2 * bytes)", WRAPPERS
    ),
    Mutation("csrc/arch/aligned.cuh", "  ::emu::check_alignment(p, sizeof(V));\n", "", FAULTS),
]

# A check of the emulator that is gone.
EMULATOR = [
    Mutation("tests/emulator/runtime/memory.cpp", "if (a % align == 0) return;", "if (a % align < 16) return;", FAULTS),
    Mutation("tests/emulator/runtime/memory.cpp", "if (write && !b.writable) {", "if (write && n == 0) {", FAULTS),
    Mutation(
        "tests/emulator/runtime/order.cpp",
        "    if (!ordered(byte.writer, byte.write_time, access)) unordered(byte.writer);\n",
        "",
        FAULTS,
    ),
    Mutation(
        "tests/emulator/runtime/order.cpp",
        "if (access.is_shared && !access.write && !byte.written) {",
        "if (access.is_shared && extent.bytes.empty()) {",
        FAULTS,
    ),
    Mutation(
        "tests/emulator/runtime/order.cpp",
        "extent.bytes[i].in_flight = true;",
        "extent.bytes[i].in_flight = false;",
        INSTRUCTION_FAULTS,
    ),
    Mutation("tests/emulator/runtime/sm90.cpp", "if (b.pending == 0) {", "if (b.arrivals == 0) {", WITHOUT_HOOKS),
    Mutation(
        "tests/emulator/runtime/wgmma.cpp",
        "if (!threads[running->thread].fenced) {",
        "if (running == nullptr) {",
        INSTRUCTION_FAULTS,
    ),
]

PADDING = ("tests/models/test_models_padding_free.py", "tests/models/test_models_padding_kept.py")
NORM = ("tests/models/test_models_residual_norm.py",)
MODELS = [
    Mutation(
        "fasttx/models/padding_free.py",
        "        and mask.shape == hidden.shape[:2]\n        and not graph_in",
        "        and not graph_in",
        PADDING,
    ),
    Mutation(
        "fasttx/models/padding_free.py",
        "        and not graph_in_the_making(hidden)\n        and bool(mask.all())",
        "        and bool(mask.all())",
        PADDING,
    ),
    Mutation(
        "fasttx/models/mlp.py",
        "approximate=APPROXIMATE[type(getattr(self, activation)).__name__],",
        'approximate="none",',
        ("tests/models/test_models_mlp.py",),
    ),
    Mutation("fasttx/models/residual_norm.py", "eps=getattr(norm, end.eps)", "eps=1e-5", NORM),
    Mutation(
        "fasttx/models/residual_norm.py",
        "p = dropout.p if dropout.training else 0.0",
        "p = 0.0",
        NORM,
    ),
    Mutation(
        "fasttx/models/embeddings.py",
        "self.dropout.training else 0.0, self.LayerNorm.eps,",
        "self.dropout.training else 0.0, 1e-5,",
        ("tests/models/test_models_embeddings.py",),
    ),
    Mutation("fasttx/models/part.py", 'if backend == "torch":', 'if backend == "none":', NORM),
    Mutation("fasttx/models/part.py", "return uncovered(x, child.weight, child.bias)", "return None", NORM),
]

MUTATIONS = [*TRITON, *CUDA, *ARCH, *EMULATOR, *MODELS]
