// Values that all lanes of a warp share. Compute capability 8.0.
#pragma once
#include <cstdint>

#include "launch.cuh"

namespace fasttx {

// x, which has the same value in all 32 lanes, so that the compiler knows it to: what follows from it alone (an
// address, a descriptor, a branch) is computed once a warp, in uniform registers. All lanes call it.
FTX_DEVICE uint32_t warp_uniform(uint32_t x) {
#ifdef FASTTX_EMULATE
  return ::emu::warp_uniform(x);
#else
  return __shfl_sync(0xffffffffu, x, 0);
#endif
}

}  // namespace fasttx
