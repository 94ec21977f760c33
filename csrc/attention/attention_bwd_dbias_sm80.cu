// The kernel of dbias: every instantiation. Each is for calls with dropout and without.
#include "attention_bwd.h"
#include "bwd_dbias_sm80.cuh"

namespace fasttx {

void attention_bwd_dbias(const BwdLaunch& launched, Stream stream) {
  BwdLaunch a = launched;
  const AttentionShape& shape = a.p.shape;
  const int (&sizes)[4] = a.p.dbias_sizes;
  dispatch_attention_bwd(a.p, "attention_bwd", [&](auto type, auto dim, auto) {
    using Of = QueryBlock<decltype(dim)::value>;
    const int64_t tiles = (static_cast<int64_t>(sizes[2]) + Of::kBlockM - 1) / Of::kBlockM *
                          ((static_cast<int64_t>(sizes[3]) + Of::kBlockN - 1) / Of::kBlockN);
    require(tiles * sizes[0] * sizes[1] <= INT32_MAX, "attention_bwd", "tiles of dbias must lie below 2^31");
    a.blocks = static_cast<int>(tiles);
    launch("attention_bwd_dbias", shape_of(shape),
           attention_bwd_dbias_kernel<typename decltype(type)::type, decltype(dim)::value>,
           dim3(static_cast<unsigned>(tiles * sizes[0] * sizes[1])), dim3(Of::kThreads), stream, a,
           bwd_queries_shared_bytes(decltype(dim)::value));
  });
}

}  // namespace fasttx
