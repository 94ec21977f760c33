// Types that cross from the bindings to the launchers: no CUDA header, no template.
#pragma once
#include <cstdint>

namespace fasttx {

using Stream = void*;  // a cudaStream_t; the bindings know it as a number

enum class DType : int { kFloat32, kFloat16, kBFloat16, kFloat64, kBool };

// Numbers of float32, float16 or bfloat16, which a kernel tells apart as it runs; data is nullptr where there are none.
struct FloatArray {
  const void* data;
  DType dtype;
};

}  // namespace fasttx
