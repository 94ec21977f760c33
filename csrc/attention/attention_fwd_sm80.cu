// Launcher of attention's forward: checks, the choice of the kernel; of mma.sync the tile by head_dim, and every
// instantiation.
#include "fwd_sm80.cuh"

#include "../common/dispatch.h"
#include "attention_checks.h"
#include "attention_choice.h"

namespace fasttx {
namespace {

template <class T, int kDim>
void start(const AttentionFwdParams& p, Stream stream) {
  using F = Fwd<kDim>;
  const AttentionShape& shape = p.shape;
  const int64_t tiles = (static_cast<int64_t>(shape.max_seqlen_q) + F::kQueries - 1) / F::kQueries;
  const int64_t blocks = tiles * shape.batch * shape.num_heads;
  require(blocks <= INT32_MAX, "attention_fwd", "tiles of queries times heads must lie below 2^31");
  launch("attention_fwd", shape_of(shape), attention_fwd_sm80_kernel<T, kDim>, dim3(static_cast<unsigned>(blocks)),
         dim3(F::kThreads), stream, p, fwd_shared_bytes(kDim));
}

}  // namespace

void attention_fwd(const AttentionFwdParams& p, Stream stream) {
  const char* kernel = "attention_fwd";
  check_attention(kernel, p.shape, p.dtype);
  require(p.shape.total_q == 0 || (p.out != nullptr && p.softmax_lse != nullptr && p.q != nullptr), kernel,
          "out, softmax_lse and q must be given");
  require(p.shape.total_k == 0 || (p.k != nullptr && p.v != nullptr), kernel, "k and v must be given");
  require(p.form == 0 || p.form == 80 || p.form == 90, kernel, "form must be 0, 80 or 90");
  const char* lack = p.form == 80 ? "" : why_not_fwd_sm90(p, current_device().arch, has_attention_fwd_sm90());
  if (lack == nullptr) return attention_fwd_sm90(p, stream);
  if (p.form == 90) throw std::invalid_argument(std::string(kernel) + ": form 90 cannot run this call: " + lack);
  const int head_dim = p.shape.head_dim > p.shape.head_dim_v ? p.shape.head_dim : p.shape.head_dim_v;
  dispatch_half(p.dtype, kernel, [&](auto type) {
    dispatch_at_least<32, 64, 96, 128, 192, kMaxHeadDim>(
        head_dim, [&](auto dim) { start<typename decltype(type)::type, decltype(dim)::value>(p, stream); });
  });
}

}  // namespace fasttx
