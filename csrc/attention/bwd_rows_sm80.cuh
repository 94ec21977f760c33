// dS where queries are rows: 16 of them a warp, as the kernels of dq and of dbias compute it.
#pragma once
#include "bwd_sm80.cuh"
#include "dropout.cuh"

namespace fasttx {

template <int kD>
struct QueryBlock {
  static constexpr BwdTile kTile = bwd_tile(kD);
  static constexpr int kWarps = kTile.warps, kThreads = 32 * kWarps, kBlockM = 16 * kWarps, kBlockN = kTile.streamed;
  static constexpr bool kHeld = kD <= 64;  // the operands Q and dO, in registers
  using Queries = Tile<kBlockM, kD>;
  using Keys = Tile<kBlockN, kD>;
};

// Of rows g and g + 8 of a warp's 16: what the workspace has; of rows that do not exist what makes P and dS 0.
struct RowStats {
  float lse[2], delta[2];

  FTX_DEVICE RowStats(const BwdLaunch& a, const HeadWork& work, int warp_row) {
    const int64_t first = stat_row(a, work);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = warp_row + threadIdx.x % 32 / 4 + 8 * r;
      lse[r] = row < work.n_q ? a.lse[first + row] : INFINITY;
      delta[r] = row < work.n_q ? a.delta[first + row] : 0.0f;
    }
  }
};

// dP becomes dS. s: the warp's scores, masked, of the rows from warp_row on and the keys from n0 on.
template <bool kDropout, int kN8>
FTX_DEVICE void row_gradients(const float (&s)[kN8][4], float (&dp)[kN8][4], const RowStats& stats,
                              const ScoreUnits& units, const AttentionShape& shape, int head, int warp_row, int n0) {
  const int lane = threadIdx.x % 32;
  [[maybe_unused]] uint32_t kept[4] = {~0u, ~0u, ~0u, ~0u};
#pragma unroll
  for (int half = 0; half < kN8 / 2; half++) {  // 16 keys; a call of Philox has 32
    if (kDropout && shape.rng_state != nullptr && half % 2 == 0) {
      AttentionDropout(shape.rng_state, shape.threshold, head)
          .draw(warp_row + lane / 4, n0 + 16 * half + lane % 4 * 2, kept);
    }
    const bool upper = kN8 == 2 ? n0 / 16 % 2 != 0 : half % 2 != 0;
#pragma unroll
    for (int x = 0; x < 8; x++) {
      const int j = 2 * half + x / 4, e = x % 4, r = e / 2;
      const float p = probability(s[j][e], stats.lse[r], units);
      if constexpr (kDropout) {
        const uint32_t of_row = upper ? kept[2 * r + 1] : kept[2 * r];
        const bool keeps = (of_row >> (8 * (x / 4 * 2 + e % 2) + 7) & 1) != 0;
        dp[j][e] = (keeps ? p : 0.0f) * dp[j][e] - p * stats.delta[r];
      } else {
        dp[j][e] = p * (dp[j][e] - stats.delta[r]);
      }
    }
  }
}

}  // namespace fasttx
