// What a file whose name says its arch (*_sm90.cu) has in place of its launchers where the module is built without it.
//
//   #include "../arch/absent.h"
//   #ifdef FASTTX_ABSENT_ARCH
//   FTX_ABSENT(attention_fwd_sm90, AttentionFwdParams)
//   #else
//   ... kernels and launchers ...
//   #endif
//
// Such a file is then compiled as C++: it has no kernels, and each launcher throws.
#pragma once
#include <stdexcept>

#include "../common/types.h"

#ifdef FASTTX_ABSENT_ARCH  // by buildsystem/cuda_build.py: "90a"
#define FTX_ABSENT(launcher, Params)                                                                               \
  void launcher(const Params&, Stream) {                                                                           \
    throw std::runtime_error(#launcher ": fasttx._C was compiled without " FASTTX_ABSENT_ARCH                      \
                                       ", the only arch with its instructions (FASTTX_CUDA_ARCHS=80,90a has it)"); \
  }
#endif
