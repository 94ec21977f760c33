// cp.async: 16 bytes from global to shared memory past the registers. Compute capability 8.0.
//
// A thread's copies belong to the group that its next commit closes. A wait is for the thread's own groups: the data of
// others are there after their wait and a barrier.
#pragma once
#include <cstdint>

#include "launch.cuh"

namespace fasttx {

// shared[0 .. 16) = global[0 .. valid_bytes), then zeros. Both at a multiple of 16; with 0 valid bytes nothing is read.
FTX_DEVICE void cp_async(uint32_t shared, const void* global, int valid_bytes) {
#ifdef FASTTX_EMULATE
  ::emu::cp_async(shared, global, valid_bytes);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid_bytes) : "memory");
#endif
}

FTX_DEVICE void cp_async_commit() {
#ifdef FASTTX_EMULATE
  ::emu::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the `kLeft` youngest groups are under way.
template <int kLeft>
FTX_DEVICE void cp_async_wait() {
#ifdef FASTTX_EMULATE
  ::emu::cp_async_wait(kLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace fasttx
