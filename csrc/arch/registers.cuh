// setmaxnreg: warpgroups of a block that have different work share its registers unevenly. Compiled for sm_90a.
//
// All warps of a warpgroup call it, each once, at the beginning of their part. kCount is a multiple of 8 of 24 .. 256;
// all threads together have no more than the 65,536 of a multiprocessor, and no more than the launch gave:
// __launch_bounds__ of the kernel must name the number of its threads, or ptxas leaves the instruction out (C7508).
#pragma once
#include "launch.cuh"

namespace fasttx {

// Gives registers back, so that each thread has kCount.
template <int kCount>
FTX_DEVICE void registers_give() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
#ifdef FASTTX_EMULATE
  ::emu::set_registers(kCount, false);
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// Waits until other warpgroups have given enough back for kCount registers a thread.
template <int kCount>
FTX_DEVICE void registers_take() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
#ifdef FASTTX_EMULATE
  ::emu::set_registers(kCount, true);
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

}  // namespace fasttx
