// Launcher of attention's forward on 9.0: tensor maps, how much work a block takes at a time, and every instantiation.
#include "attention.h"

#include "../arch/absent.h"

#ifdef FASTTX_ABSENT_ARCH
namespace fasttx {
FTX_ABSENT(attention_fwd_sm90, AttentionFwdParams)
bool has_attention_fwd_sm90() {
  return false;
}
}  // namespace fasttx
#else

#include "../common/dispatch.h"
#include "attention_checks.h"
#include "attention_choice.h"
#include "fwd_sm90.cuh"

namespace fasttx {
namespace {

// Boxes of `box_rows` tokens and 64 columns of a head. What has size 1 may have any stride.
TensorMap map_of(const void* x, const int64_t (&strides)[3], const int64_t (&sizes)[3], int columns, int box_rows) {
  auto bytes = [&](int i) { return sizes[i] > 1 ? 2 * static_cast<uint64_t>(strides[i]) : uint64_t{16}; };
  auto size = [&](int i) { return static_cast<uint64_t>(sizes[i]); };
  return make_tensor_map(x, 2, {static_cast<uint64_t>(columns), size(1), size(2), size(0)},
                         {bytes(1), bytes(2), bytes(0)}, static_cast<uint32_t>(box_rows));
}

template <class T, int kDim, bool kDropout, bool kMasks>
void start(const AttentionFwdParams& call, Stream stream) {
  const AttentionShape& shape = call.shape;
  const int64_t heads = static_cast<int64_t>(shape.batch) * shape.num_heads;
  const int multiprocessors = current_device().multiprocessors;
  const int64_t tiles = fwd_sm90_tiles(kDim, kMasks, heads, shape.max_seqlen_q, shape.max_seqlen_k, multiprocessors);
  const int64_t all_tiles = (static_cast<int64_t>(shape.max_seqlen_q) + kSm90Queries - 1) / kSm90Queries;
  const int64_t items_per_head = (all_tiles + tiles - 1) / tiles, items = heads * items_per_head;
  // a block's next item is counted in 32 bits too
  require(items <= INT32_MAX - multiprocessors, "attention_fwd", "tiles of queries times heads must lie below 2^31");
  int64_t queries[3], keys[3];
  sizes_of(shape, false, queries);
  sizes_of(shape, true, keys);
  const FwdSm90Params p{call,
                        map_of(call.q, call.q_strides, queries, shape.head_dim, kSm90Queries),
                        map_of(call.k, call.k_strides, keys, shape.head_dim, kSm90Keys),
                        map_of(call.v, call.v_strides, keys, shape.head_dim_v, kSm90Keys),
                        static_cast<int>(tiles),
                        static_cast<int>(items_per_head),
                        static_cast<int>(items)};
  const int64_t blocks = items < multiprocessors ? items : multiprocessors;
  launch("attention_fwd", shape_of(shape), attention_fwd_sm90_kernel<T, kDim, kDropout, kMasks>,
         dim3(static_cast<unsigned>(blocks)), dim3(FwdSm90<kDim, kMasks>::kThreads), stream, p,
         fwd_sm90_shared_bytes(kDim, kMasks));
}

}  // namespace

bool has_attention_fwd_sm90() {
  return true;
}

void attention_fwd_sm90(const AttentionFwdParams& p, Stream stream) {
  const int head_dim = p.shape.head_dim > p.shape.head_dim_v ? p.shape.head_dim : p.shape.head_dim_v;
  dispatch_half(p.dtype, "attention_fwd", [&](auto type) {
    dispatch_at_least<32, 64, 96, kSm90MaxHeadDim>(head_dim, [&](auto dim) {
      using T = typename decltype(type)::type;
      constexpr int kDim = decltype(dim)::value;
      if (p.shape.rng_state != nullptr) {
        start<T, kDim, true, false>(p, stream);
      } else {
        needs_masks_sm90(p.shape) ? start<T, kDim, false, true>(p, stream) : start<T, kDim, false, false>(p, stream);
      }
    });
  });
}

}  // namespace fasttx
#endif
