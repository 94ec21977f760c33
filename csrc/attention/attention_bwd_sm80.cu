// Launcher of attention's backward: checks, in one pass or in two, and the kernels of delta and of dk and dv.
#include "attention_bwd.h"

#include "bwd_delta.cuh"
#include "bwd_dkdv_sm80.cuh"

namespace fasttx {
namespace {

int blocks_of(int length, int rows) {
  return (length + rows - 1) / rows;
}

template <class T, int kD, bool kDropout>
void start(BwdLaunch a, Stream stream) {
  using Of = KeyBlock<kD>;
  const AttentionShape& shape = a.p.shape;
  a.blocks = blocks_of(shape.max_seqlen_q, kStatRows);
  launch("attention_bwd_delta", shape_of(shape), attention_bwd_delta_kernel<T>,
         dim3(static_cast<unsigned>(a.blocks * shape.batch * shape.num_heads)), dim3(kDeltaThreads), stream, a);

  size_t shared_bytes = bwd_keys_shared_bytes(kD);
  a.blocks = blocks_of(shape.max_seqlen_k, Of::kBlockN);
  if (Of::kHasDq && a.blocks > 1) {
    const size_t group = static_cast<size_t>(shape.num_heads / shape.num_heads_k);
    const size_t with_dq = shared_bytes + bwd_dq_bytes(kD, group, static_cast<size_t>(shape.max_seqlen_q));
    a.computes_dq = with_dq <= current_device().shared_bytes;
    if (a.computes_dq) shared_bytes = with_dq;
  } else {
    a.computes_dq = Of::kHasDq;
  }
  if (a.computes_dq || a.blocks == 0) a.blocks = 1;
  launch("attention_bwd_dkdv", shape_of(shape), attention_bwd_dkdv_kernel<T, kD, kDropout>,
         dim3(static_cast<unsigned>(a.blocks * shape.batch * shape.num_heads_k), kD / Of::kColumns), dim3(Of::kThreads),
         stream, a, shared_bytes);
  if (!a.computes_dq) attention_bwd_dq(a, stream);
  if (a.p.dbias.data != nullptr) attention_bwd_dbias(a, stream);
}

}  // namespace

void attention_bwd(const AttentionBwdParams& p, Stream stream) {
  const char* kernel = "attention_bwd";
  check_attention(kernel, p.shape, p.dtype);
  const AttentionShape& shape = p.shape;
  require(p.workspace != nullptr, kernel, "workspace must be given");
  require(shape.total_q == 0 ||
              (p.dq != nullptr && p.dout != nullptr && p.q != nullptr && p.out != nullptr && p.softmax_lse != nullptr),
          kernel, "dq, dout, q, out and softmax_lse must be given");
  require(shape.total_k == 0 || (p.dk != nullptr && p.dv != nullptr && p.k != nullptr && p.v != nullptr), kernel,
          "dk, dv, k and v must be given");
  const int64_t longest = shape.max_seqlen_q > shape.max_seqlen_k ? shape.max_seqlen_q : shape.max_seqlen_k;
  require((longest / kStatRows + 1) * shape.batch * shape.num_heads <= INT32_MAX, kernel,
          "tiles of 64 tokens times heads must lie below 2^31");
  if (p.dbias.data != nullptr) {
    require_float(p.dbias.dtype, kernel);
    require(shape.attn_bias != nullptr && shape.bias_dtype == p.dbias.dtype, kernel, "dbias must be as attn_bias");
    const int full[4] = {shape.batch, shape.num_heads, shape.max_seqlen_q, shape.max_seqlen_k};
    for (int i = 0; i < 4; i++) {
      require(p.dbias_sizes[i] == full[i] || (p.dbias_sizes[i] == 1 && i < 3), kernel,
              "dbias_sizes must be batch, num_heads, max_seqlen_q or 1, and max_seqlen_k");
    }
  }
  BwdLaunch a = {};
  a.p = p;
  const bool packed = shape.cu_seqlens_q != nullptr;
  a.head_blocks = packed ? shape.total_q / kStatRows + shape.batch : blocks_of(shape.max_seqlen_q, kStatRows);
  a.lse = p.workspace;
  a.delta = a.lse + a.head_blocks * kStatRows * shape.num_heads * (packed ? 1 : shape.batch);
  a.keep_scale = 256.0f / static_cast<float>(256 - shape.threshold);
  dispatch_attention_bwd(p, kernel, [&](auto type, auto dim, auto dropout) {
    start<typename decltype(type)::type, decltype(dim)::value, decltype(dropout)::value>(a, stream);
  });
}

}  // namespace fasttx
