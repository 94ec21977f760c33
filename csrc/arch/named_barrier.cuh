// Barriers of some warps of a block, by number. Compute capability 8.0.
//
// A block has 16; 0 is __syncthreads, so that 1 .. 15 are free. The number is a template argument: with one in a
// register ptxas would reserve all of them. kThreads, a multiple of 32, counts those that arrive and those that sync.
// All lanes of a warp call it. What is written before either is seen by those who sync.
#pragma once
#include "launch.cuh"

namespace fasttx {

// Waits until kThreads threads are here or have arrived.
template <int kBarrier, int kThreads>
FTX_DEVICE void named_barrier_sync() {
  static_assert(kBarrier > 0 && kBarrier < 16 && kThreads > 0 && kThreads % 32 == 0 && kThreads <= 1024);
#ifdef FASTTX_EMULATE
  ::emu::named_barrier(kBarrier, kThreads, true);
#else
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
#endif
}

// Counts this thread in, and goes on.
template <int kBarrier, int kThreads>
FTX_DEVICE void named_barrier_arrive() {
  static_assert(kBarrier > 0 && kBarrier < 16 && kThreads > 0 && kThreads % 32 == 0 && kThreads <= 1024);
#ifdef FASTTX_EMULATE
  ::emu::named_barrier(kBarrier, kThreads, false);
#else
  asm volatile("bar.arrive %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
#endif
}

}  // namespace fasttx
