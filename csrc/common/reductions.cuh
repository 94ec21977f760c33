// Reductions: registers, then a warp's lanes, then the warps of a block. Every thread gets the result, the same bits
// each time.
#pragma once
#include "../arch/launch.cuh"

namespace fasttx {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kMaxWarps = 32;

struct Max {
  static constexpr float kIdentity = -INFINITY;
  FTX_DEVICE static float of(float a, float b) { return fmaxf(a, b); }
};

struct Sum {
  static constexpr float kIdentity = 0.0f;
  FTX_DEVICE static float of(float a, float b) { return a + b; }
};

template <class Op>
FTX_DEVICE float warp_reduce(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value = Op::of(value, __shfl_xor_sync(kWholeWarp, value, lanes));
  return value;
}

// Over a group of kGroup threads: one, a warp, or the whole block. `partials` holds kMaxWarps floats of shared memory
// that no other reduction of the same kernel uses: then one barrier is enough, the one between writing and reading
// them.
template <class Op, int kGroup>
FTX_DEVICE float group_reduce(float value, float* partials) {
  static_assert(kGroup == 1 || (kGroup % 32 == 0 && kGroup / 32 <= kMaxWarps), "a lane reads the value of each warp");
  if constexpr (kGroup > 1) value = warp_reduce<Op>(value);
  if constexpr (kGroup > 32) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) partials[warp] = value;
    __syncthreads();  // partials: written by each warp, read by all
    value = warp_reduce<Op>(lane < kGroup / 32 ? partials[lane] : Op::kIdentity);
  }
  return value;
}

}  // namespace fasttx
