// mbarriers, and the fences towards the asynchronous proxy. Compute capability 9.0.
//
// An mbarrier is 8 bytes of shared memory at a multiple of 8. Its phase ends when `arrivals` threads have arrived and
// all bytes that they said to expect have come; the next phase begins at once. Waiting for parity p returns when the
// current phase has not parity p: the first phase has parity 0, so that waiting for 1 on a new barrier returns at once.
#pragma once
#include <cstdint>

#include "launch.cuh"

namespace fasttx {

FTX_DEVICE void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
#ifdef FASTTX_EMULATE
  ::emu::mbarrier_init(barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#endif
}

// After the inits, by the thread that made them: copies may then signal these barriers. Other threads need a barrier.
FTX_DEVICE void mbarrier_init_fence() {
#ifdef FASTTX_EMULATE
  ::emu::fence_proxy_async();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

FTX_DEVICE void mbarrier_arrive(uint32_t barrier) {
#ifdef FASTTX_EMULATE
  ::emu::mbarrier_arrive(barrier, 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

FTX_DEVICE void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
#ifdef FASTTX_EMULATE
  ::emu::mbarrier_arrive(barrier, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}

FTX_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
#ifdef FASTTX_EMULATE
  ::emu::mbarrier_wait(barrier, parity);
#else
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
#endif
}

// Makes this thread's writes to shared memory visible to wgmma and TMA: after the writes, before the barrier.
FTX_DEVICE void fence_proxy_async() {
#ifdef FASTTX_EMULATE
  ::emu::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace fasttx
