// The kernel of dq: every instantiation.
#include "attention_bwd.h"
#include "bwd_dq_sm80.cuh"

namespace fasttx {

void attention_bwd_dq(const BwdLaunch& launched, Stream stream) {
  BwdLaunch a = launched;
  const AttentionShape& shape = a.p.shape;
  dispatch_attention_bwd(a.p, "attention_bwd", [&](auto type, auto dim, auto dropout) {
    using Of = QueryBlock<decltype(dim)::value>;
    a.blocks = (shape.max_seqlen_q + Of::kBlockM - 1) / Of::kBlockM;
    launch("attention_bwd_dq", shape_of(shape),
           attention_bwd_dq_kernel<typename decltype(type)::type, decltype(dim)::value, decltype(dropout)::value>,
           dim3(static_cast<unsigned>(a.blocks * shape.batch * shape.num_heads)), dim3(Of::kThreads), stream, a,
           bwd_queries_shared_bytes(decltype(dim)::value));
  });
}

}  // namespace fasttx
