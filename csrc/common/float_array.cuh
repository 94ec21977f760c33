// Reads of a FloatArray: one branch a run, the same for all threads.
#pragma once
#include "float_array.h"
#include "vectors.cuh"

namespace fasttx {

template <int kRun, class T>
FTX_DEVICE void load_typed(const T* p, uint32_t low, uint32_t high, float* out) {
  constexpr uintptr_t kBytes = kRun * sizeof(T) < 16 ? kRun * sizeof(T) : 16;
  load_part<kRun>(p, low, high, reinterpret_cast<uintptr_t>(p) % kBytes == 0, 0.0f, out);
}

// out[i] = array[at + i] for low <= i < high, 0 for the rest of 0 .. kRun.
template <int kRun>
FTX_DEVICE void load_part(const FloatArray& array, int64_t at, uint32_t low, uint32_t high, float* out) {
  switch (array.dtype) {
    case DType::kFloat32:
      return load_typed<kRun>(static_cast<const float*>(array.data) + at, low, high, out);
    case DType::kFloat16:
      return load_typed<kRun>(static_cast<const __half*>(array.data) + at, low, high, out);
    default:
      return load_typed<kRun>(static_cast<const __nv_bfloat16*>(array.data) + at, low, high, out);
  }
}

FTX_DEVICE float load_one(const FloatArray& array, int64_t at) {
  switch (array.dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(array.data)[at];
    case DType::kFloat16:
      return to_float(static_cast<const __half*>(array.data)[at]);
    default:
      return to_float(static_cast<const __nv_bfloat16*>(array.data)[at]);
  }
}

}  // namespace fasttx
