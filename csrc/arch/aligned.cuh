// Several elements by one access: its address is a multiple of its size, or the GPU stops the kernel.
//
// The hosts of the emulator forgive that, so that it asks here, in each of its variants.
#pragma once
#include "launch.cuh"

namespace fasttx {

template <class V>
FTX_DEVICE const V& aligned_at(const void* p) {
  static_assert(alignof(V) == sizeof(V), "one instruction moves it");
#ifdef FASTTX_EMULATE
  ::emu::check_alignment(p, sizeof(V));
#endif
  return *static_cast<const V*>(p);
}

template <class V>
FTX_DEVICE V& aligned_at(void* p) {
  return const_cast<V&>(aligned_at<V>(static_cast<const void*>(p)));
}

}  // namespace fasttx
