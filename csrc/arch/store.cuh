// One store of 16 bytes to global memory.
//
// A plain one may be cut into the elements that it is made of, where a branch beside it stores the same ones.
#pragma once
#include "aligned.cuh"

namespace fasttx {

// p lies at a multiple of 16 bytes.
FTX_DEVICE void store_vector(void* p, uint4 words) {
#ifdef FASTTX_EMULATE
  aligned_at<uint4>(p) = words;
#else
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
#endif
}

}  // namespace fasttx
