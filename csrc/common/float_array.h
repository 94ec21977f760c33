// An array whose float type a kernel tells apart as it runs.
#pragma once
#include "checks.h"
#include "types.h"

namespace fasttx {

// Numbers of float32, float16 or bfloat16; data is nullptr where there are none.
struct FloatArray {
  const void* data;
  DType dtype;
};

inline void require_floats(const FloatArray& array, const char* kernel, const char* what) {
  const bool floats =
      array.dtype == DType::kFloat32 || array.dtype == DType::kFloat16 || array.dtype == DType::kBFloat16;
  require(array.data == nullptr || floats, kernel, what);
}

}  // namespace fasttx
