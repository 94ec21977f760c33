// out = a b^T or a b by mma.sync: cp.async into two stages, ldmatrix, four warps of 32 x 32 in a tile of 64 x 64.
// One fault at a time on request.
#include "arch/cp_async.cuh"
#include "arch/ldmatrix.cuh"
#include "arch/mma.cuh"
#include "gemm.cuh"

using namespace fasttx;

namespace {
enum Fault {
  kNone,
  kNoWait,                // a tile is read while its copies are under way
  kNoCommit,              // copies that no wait can name
  kNoBarrierAfterWait,    // other threads' copies are read
  kNoBarrierBeforeReuse,  // a stage is filled again while others still read it
  kNoLoad,                // shared memory that nobody wrote
  kSharedOutOfBounds,     // a row of ldmatrix behind the last stage
  kSharedMisaligned,      // a row of ldmatrix at 8 bytes
  kGlobalRows,            // rows of a that do not exist are copied
  kGlobalColumns,         // k that does not exist is copied
  kStoreRows,             // rows of out that do not exist are stored
  kBarrierInOneLane,      // a barrier that one lane of each warp reaches
  kMmaInHalfWarp,         // a product that half of a warp reaches
};

constexpr int kThreads = 128, kStages = 2;

struct alignas(128) Tile {
  unsigned char bytes[kTileBytes];
};

// 16-byte chunk c of row r lies at chunk c ^ (r % 8), so that eight rows of one chunk lie in different banks
FTX_DEVICE uint32_t at(uint32_t tile, int row, int chunk) {
  return tile + row * kTileRow + (chunk ^ (row % 8)) * 16;
}

// Rows row0 .. + 64 and columns column0 .. + 128 bytes of a matrix; zeros beyond it.
template <class T>
FTX_DEVICE void load_tile(uint32_t tile, const T* matrix, int stride, int rows, int columns, int row0, int column0,
                          bool all_rows, bool all_columns) {
  constexpr int kWidth = 16 / sizeof(T), kChunks = kTileRow / 16;
  for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
    const int r = i / kChunks, c = i % kChunks, row = row0 + r, column = column0 + c * kWidth;
    const int left = all_columns ? kWidth : columns - column;
    const bool inside = (row < rows || all_rows) && left > 0;
    const int valid = inside ? static_cast<int>(sizeof(T)) * (left < kWidth ? left : kWidth) : 0;
    cp_async(at(tile, r, c), inside ? matrix + static_cast<int64_t>(row) * stride + column : matrix, valid);
  }
}

template <class T, bool kTransposedB>
__global__ void __launch_bounds__(kThreads) gemm_sm80_kernel(const __grid_constant__ GemmParams p) {
  FTX_SHARED(Tile, tiles, 2 * kStages);
  constexpr int kDepth = kTileRow / sizeof(T), kSteps = kTileRow / 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int m0 = blockIdx.y * kTile, n0 = blockIdx.x * kTile, steps = (p.k + kDepth - 1) / kDepth;
  const int warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;
  const T* a = static_cast<const T*>(p.a);
  const T* b = static_cast<const T*>(p.b);
  const uint32_t shared = shared_address(tiles);

  auto load = [&](int step) {
    const uint32_t stage = shared + step % kStages * 2 * kTileBytes;
    load_tile(stage, a, p.stride_a, p.m, p.k, m0, step * kDepth, has(p, kGlobalRows), has(p, kGlobalColumns));
    if (has(p, kNoLoad)) {
    } else if (kTransposedB) {
      load_tile(stage + kTileBytes, b, p.stride_b, p.k, p.n, step * kDepth, n0, false, false);
    } else {
      load_tile(stage + kTileBytes, b, p.stride_b, p.n, p.k, n0, step * kDepth, false, false);
    }
    if (!has(p, kNoCommit)) cp_async_commit();
  };

  Sum<T> d[2][4][4] = {};
  load(0);
  for (int step = 0; step < steps; step++) {
    if (step + 1 < steps) {
      load(step + 1);
      if (!has(p, kNoWait)) cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    if (!has(p, kNoBarrierAfterWait)) __syncthreads();  // this stage: copied by all, read by all
    const uint32_t tile_a = shared + step % kStages * 2 * kTileBytes, tile_b = tile_a + kTileBytes;
    if (has(p, kBarrierInOneLane) && lane == 3) __syncthreads();
#pragma unroll
    for (int k = 0; k < kSteps; k++) {  // 32 bytes of k each
      uint32_t fa[2][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int row = warp_m + 16 * i + lane % 16;
        if (has(p, kSharedOutOfBounds) && warp == 3) row += 2 * kStages * kTile;
        ldmatrix(fa[i], at(tile_a, row, 2 * k + lane / 16) + (has(p, kSharedMisaligned) ? 8 : 0));
        if (kTransposedB) {  // rows are k: registers (k 0-7, n 0-7), (k 8-15, n 0-7), then n 8-15
          ldmatrix_transposed(fb[i], at(tile_b, 16 * k + lane % 16, (warp_n + 16 * i) / 8 + lane / 16));
        } else {  // rows are n, in the same order
          ldmatrix(fb[i], at(tile_b, warp_n + 16 * i + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
        }
      }
      if (has(p, kMmaInHalfWarp) && lane >= 16) continue;
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) mma<T>(d[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
      }
    }
    if (!has(p, kNoBarrierBeforeReuse)) __syncthreads();  // the next step's copies overwrite this stage
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int row = m0 + warp_m + 16 * i + g + 8 * (e / 2), column = n0 + warp_n + 8 * j + 2 * t + e % 2;
        if ((row >= p.m && !has(p, kStoreRows)) || column >= p.n) continue;
        static_cast<Sum<T>*>(p.out)[static_cast<int64_t>(row) * p.n + column] = d[i][j][e];
      }
    }
  }
}

template <class T, bool kTransposedB>
void start(const GemmParams& p) {
  const dim3 grid((p.n + kTile - 1) / kTile, (p.m + kTile - 1) / kTile);
  launch("gemm_sm80", "", gemm_sm80_kernel<T, kTransposedB>, grid, dim3(kThreads), nullptr, p);
}
}  // namespace

// type: 0 fp16, 1 bf16, 2 int8
FTX_EXPORT const char* run_gemm_sm80(void* out, const void* a, const void* b, int m, int n, int k, int stride_a,
                                     int stride_b, int type, int transposed_b, int fault) {
  return reported([&] {
    const GemmParams p{out, a, b, m, n, k, stride_a, stride_b, fault};
    if (type == 0) transposed_b ? start<__half, true>(p) : start<__half, false>(p);
    if (type == 1) transposed_b ? start<__nv_bfloat16, true>(p) : start<__nv_bfloat16, false>(p);
    if (type == 2) start<int8_t, false>(p);
  });
}
