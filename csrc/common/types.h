// Types that cross from the bindings to the launchers: no CUDA header, no template.
#pragma once
#include <cstdint>

namespace fasttx {

using Stream = void*;  // a cudaStream_t; the bindings know it as a number

enum class DType : int { kFloat32, kFloat16, kBFloat16, kFloat64, kBool };

}  // namespace fasttx
