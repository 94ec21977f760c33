// From run-time values to template arguments, over short literal lists.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "checks.h"
#include "types.h"

namespace fasttx {

template <class T>
struct Type {
  using type = T;
};

// Stands for an element type that is known when a kernel runs, not when it is compiled.
struct Any {};

// f(Type<T>) for the element type of a tensor.
template <class F>
void dispatch_float(DType dtype, const char* kernel, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(Type<float>{});
    case DType::kFloat16:
      return f(Type<__half>{});
    case DType::kBFloat16:
      return f(Type<__nv_bfloat16>{});
    default:
      require_float(dtype, kernel);  // throws
  }
}

// f(Type<T>) for one of the types of 16 bits.
template <class F>
void dispatch_half(DType dtype, const char* kernel, F&& f) {
  require(dtype == DType::kFloat16 || dtype == DType::kBFloat16, kernel, "tensors must be float16 or bfloat16");
  dtype == DType::kFloat16 ? f(Type<__half>{}) : f(Type<__nv_bfloat16>{});
}

// f(Type<T>) for the element type that all these tensors have, f(Type<Any>) where they differ.
template <class F>
void dispatch_floats(std::initializer_list<DType> dtypes, const char* kernel, F&& f) {
  bool differ = false;
  for (DType dtype : dtypes) {
    require_float(dtype, kernel);
    differ = differ || dtype != *dtypes.begin();
  }
  differ ? f(Type<Any>{}) : dispatch_float(*dtypes.begin(), kernel, f);
}

template <class F>
void dispatch_bool(bool value, F&& f) {
  value ? f(std::true_type{}) : f(std::false_type{});
}

// f(integral_constant) of the first literal that is at least `value`; false where none is.
template <int... kLiterals, class F>
bool dispatch_at_least(int64_t value, F&& f) {
  bool found = false;
  ((!found && kLiterals >= value ? (f(std::integral_constant<int, kLiterals>{}), found = true) : false), ...);
  return found;
}

}  // namespace fasttx
