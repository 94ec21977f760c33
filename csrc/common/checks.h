// What would corrupt memory is refused here again, whatever the caller has checked.
#pragma once
#include <stdexcept>
#include <string>

#include "types.h"

namespace fasttx {

inline void require(bool holds, const char* kernel, const char* what) {
  if (!holds) throw std::invalid_argument(std::string(kernel) + ": " + what);
}

inline void require_float(DType dtype, const char* kernel) {
  require(dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16, kernel,
          "tensors must be float32, float16 or bfloat16");
}

// Of a tensor that may be absent; its type is not looked at then.
inline void require_floats(const In& in, const char* kernel, const char* what) {
  const bool floats = in.dtype == DType::kFloat32 || in.dtype == DType::kFloat16 || in.dtype == DType::kBFloat16;
  require(in.data == nullptr || floats, kernel, what);
}

inline void check_dropout(const char* kernel, const Dropout& dropout) {
  require(dropout.threshold >= 0 && dropout.threshold <= 256, kernel, "threshold must lie in 0 .. 256");
}

}  // namespace fasttx
