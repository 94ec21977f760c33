// out = a b^T or a b on Hopper: a producer warp keeps a ring of stages filled by TMA, a warpgroup multiplies tiles of
// 64 x 64 by wgmma. One fault at a time on request.
#include "arch/mbarrier.cuh"
#include "arch/tma.cuh"
#include "arch/wgmma.cuh"
#include "gemm.cuh"

using namespace fasttx;

namespace {
enum Fault {
  kNone,
  kNoFullWait,           // a stage is read before its copies have landed
  kNoFullWaitInAWarp,    // by one warp of the four
  kNoEmptyWait,          // a stage is filled again while it is read
  kWrongParity,          // the producer waits for a stage that nobody has used yet
  kEarlyRelease,         // a stage is given back before its products are waited for
  kEarlyReleaseByAWarp,  // by one warp of the four
  kNoReleaseByAWarp,     // a stage is never given back
  kNoInitBarrier,        // mbarriers are used before they are made
  kNoInitFence,          // copies signal mbarriers that they may not see
  kTooFewBytes,          // fewer bytes are expected than come
  kTooManyBytes,         // more
  kNoProductFence,       // wgmma without wgmma.fence
  kNoProductCommit,      // products that no wait can name
  kNoProductWait,        // the block ends before its products
  kReadBeforeWait,       // accumulators are read while the products are under way
  kWriteBeforeWait,      // or written
  kProductInThreeWarps,  // a warp is not there
  kSharedOutOfBounds,    // a box behind the last stage
  kSharedMisaligned,     // a box at a multiple of 64 bytes
  kStoreColumns,         // columns of out that do not exist are stored
  kUnsolicitedBox,       // a copy that nobody expects
  kUnreadBox,            // a copy that nobody waits for
};

constexpr int kConsumers = 128, kThreads = kConsumers + 32, kStages = 4;
constexpr int kStageBytes = 2 * kTileBytes, kSharedBytes = kStages * (kStageBytes + 2 * 8);

struct Params {
  GemmParams gemm;
  TensorMap a, b;
  int fault;
};

template <class T, bool kTransposedB>
FTX_DEVICE void produce(const Params& p, uint32_t shared, uint32_t full, uint32_t empty, int steps) {
  constexpr int kDepth = kTileRow / sizeof(T);
  const int m0 = blockIdx.y * kTile, n0 = blockIdx.x * kTile;
  for (int step = 0; step < steps; step++) {
    const int stage = step % kStages, round = step / kStages, k0 = step * kDepth;
    uint32_t tile = shared + stage * kStageBytes;
    if (has(p, kSharedOutOfBounds)) tile += kStageBytes;
    if (has(p, kSharedMisaligned)) tile += 64;
    if (!has(p, kNoEmptyWait)) mbarrier_wait(empty + 8 * stage, (round + (has(p, kWrongParity) ? 0 : 1)) % 2);
    const int wrong = has(p, kTooFewBytes) ? -16 : has(p, kTooManyBytes) ? 16 : 0;
    mbarrier_arrive_expect_tx(full + 8 * stage, kStageBytes + wrong);
    tma_load(tile, p.a, full + 8 * stage, m0, k0);
    if (kTransposedB) {
      tma_load(tile + kTileBytes, p.b, full + 8 * stage, k0, n0);
    } else {
      tma_load(tile + kTileBytes, p.b, full + 8 * stage, n0, k0);
    }
  }
  if (has(p, kUnsolicitedBox) || has(p, kUnreadBox)) {
    const int stage = steps % kStages;
    mbarrier_wait(empty + 8 * stage, (steps / kStages + 1) % 2);
    if (has(p, kUnreadBox)) mbarrier_arrive_expect_tx(full + 8 * stage, kTileBytes);
    tma_load(shared + stage * kStageBytes, p.a, full + 8 * stage, m0, 0);
  }
}

template <class T, bool kTransposedB>
__global__ void __launch_bounds__(kThreads) gemm_sm90_kernel(const __grid_constant__ Params p) {
  FTX_DYNAMIC_SHARED(memory, 1024);
  constexpr int kDepth = kTileRow / sizeof(T), kSteps = kTileRow / 32;
  // the next 32 bytes of k: in the same row, or two tiles of 8 k further where b is stored as (k x n)
  constexpr int kNextB = kTransposedB ? 2 * 1024 : 32;
  const uint32_t shared = shared_address(memory), full = shared + kStages * kStageBytes, empty = full + kStages * 8;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int steps = (p.gemm.k + kDepth - 1) / kDepth;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      mbarrier_init(full + 8 * s, 1);
      mbarrier_init(empty + 8 * s, kConsumers / 32);
    }
    if (!has(p, kNoInitFence)) mbarrier_init_fence();
  }
  if (!has(p, kNoInitBarrier)) __syncthreads();  // the mbarriers: made by one thread, used by all

  if (warp == kConsumers / 32) {
    if (lane == 0) produce<T, kTransposedB>(p, shared, full, empty, steps);
    return;
  }
  Sum<T> d[32];
  for (int step = 0; step < steps; step++) {
    const int stage = step % kStages, parity = step / kStages % 2;
    const uint32_t tile_a = shared + stage * kStageBytes, tile_b = tile_a + kTileBytes;
    if (!has(p, kNoFullWait) && !(has(p, kNoFullWaitInAWarp) && warp == 2)) mbarrier_wait(full + 8 * stage, parity);
    if (!has(p, kNoProductFence)) wgmma_fence(d);
    if (has(p, kProductInThreeWarps) && warp == 1) continue;
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      wgmma<T, kTransposedB>(d, wgmma_descriptor(tile_a + 32 * k), wgmma_descriptor(tile_b + kNextB * k),
                             step > 0 || k > 0);
    }
    if (!has(p, kNoProductCommit)) wgmma_commit();
    if (has(p, kReadBeforeWait) && d[3] == Sum<T>(7)) return;
    if (has(p, kWriteBeforeWait)) d[3] = 0;
    const bool early = has(p, kEarlyRelease) || (has(p, kEarlyReleaseByAWarp) && warp == 3);
    if (early && lane == 0) mbarrier_arrive(empty + 8 * stage);
    if (!has(p, kNoProductWait)) wgmma_wait<0>(d);
    if (!early && !(has(p, kNoReleaseByAWarp) && warp == 3) && lane == 0) {
      mbarrier_arrive(empty + 8 * stage);  // after the wait: the tensor cores read the stage until then
    }
  }
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const int row = blockIdx.y * kTile + warp * 16 + g + 8 * (i / 2 % 2);
    const int column = blockIdx.x * kTile + i / 4 * 8 + 2 * t + i % 2;
    if (row >= p.gemm.m || (column >= p.gemm.n && !has(p, kStoreColumns))) continue;
    static_cast<Sum<T>*>(p.gemm.out)[static_cast<int64_t>(row) * p.gemm.n + column] = d[i];
  }
}

template <class T, bool kTransposedB>
void start(const GemmParams& g) {
  const uint64_t bytes = sizeof(T), m = g.m, n = g.n, k = g.k;
  const Params p{g, make_tensor_map(g.a, sizeof(T), m, k, bytes * g.stride_a, kTile),
                 kTransposedB ? make_tensor_map(g.b, sizeof(T), k, n, bytes * g.stride_b, kTileRow / sizeof(T))
                              : make_tensor_map(g.b, sizeof(T), n, k, bytes * g.stride_b, kTile),
                 g.fault};
  const dim3 grid((g.n + kTile - 1) / kTile, (g.m + kTile - 1) / kTile);
  launch("gemm_sm90", "", gemm_sm90_kernel<T, kTransposedB>, grid, dim3(kThreads), nullptr, p, kSharedBytes);
}
}  // namespace

// type: 0 fp16, 1 bf16, 2 int8
FTX_EXPORT const char* run_gemm_sm90(void* out, const void* a, const void* b, int m, int n, int k, int stride_a,
                                     int stride_b, int type, int transposed_b, int fault) {
  return reported([&] {
    const GemmParams p{out, a, b, m, n, k, stride_a, stride_b, fault};
    if (type == 0) transposed_b ? start<__half, true>(p) : start<__half, false>(p);
    if (type == 1) transposed_b ? start<__nv_bfloat16, true>(p) : start<__nv_bfloat16, false>(p);
    if (type == 2) start<int8_t, false>(p);
  });
}
