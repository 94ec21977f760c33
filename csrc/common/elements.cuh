// Runs of a tensor whose float type a kernel may have to tell apart as it runs: one branch a run, the same for all
// threads.
#pragma once
#include "dispatch.h"
#include "vectors.cuh"

namespace fasttx {

// f(Type<E>): E is T or, where T is Any, the element type that `dtype` names.
template <class T, class F>
FTX_DEVICE void with_element(DType dtype, F&& f) {
  if constexpr (!std::is_same_v<T, Any>) {
    f(Type<T>{});
  } else if (dtype == DType::kFloat32) {
    f(Type<float>{});
  } else if (dtype == DType::kFloat16) {
    f(Type<__half>{});
  } else {
    f(Type<__nv_bfloat16>{});  // launchers let no other through
  }
}

// out = data[at .. at + kRun), 0 from `valid` on.
template <class T, int kRun>
FTX_DEVICE void load_run_of(const In& in, int64_t at, uint32_t valid, float* out) {
  with_element<T>(in.dtype, [&](auto type) {
    const auto* p = static_cast<const typename decltype(type)::type*>(in.data) + at;
    load_run<kRun>(p, valid, is_vector_aligned(p), out);
  });
}

template <class T, int kRun>
FTX_DEVICE void store_run_of(const Out& out, int64_t at, uint32_t valid, const float* in) {
  with_element<T>(out.dtype, [&](auto type) {
    auto* p = static_cast<typename decltype(type)::type*>(out.data) + at;
    store_run<kRun>(p, valid, is_vector_aligned(p), in);
  });
}

// Each value as a tensor of `dtype` would hold it.
template <class T, int kItems>
FTX_DEVICE void round_to(DType dtype, float (&values)[kItems]) {
  with_element<T>(dtype, [&](auto type) {
#pragma unroll
    for (int i = 0; i < kItems; i++) {
      typename decltype(type)::type rounded;
      from_float(values[i], &rounded);
      values[i] = to_float(rounded);
    }
  });
}

// out[i] = in[at + i] for low <= i < high, 0 for the rest of 0 .. kRun, which may be less than a vector.
template <int kRun>
FTX_DEVICE void load_part(const In& in, int64_t at, uint32_t low, uint32_t high, float* out) {
  with_element<Any>(in.dtype, [&](auto type) {
    using E = typename decltype(type)::type;
    constexpr uintptr_t kBytes = kRun * sizeof(E) < 16 ? kRun * sizeof(E) : 16;
    const E* p = static_cast<const E*>(in.data) + at;
    load_part<kRun>(p, low, high, reinterpret_cast<uintptr_t>(p) % kBytes == 0, 0.0f, out);
  });
}

FTX_DEVICE float load_one(const In& in, int64_t at) {
  float value;
  with_element<Any>(
      in.dtype, [&](auto type) { value = to_float(static_cast<const typename decltype(type)::type*>(in.data)[at]); });
  return value;
}

}  // namespace fasttx
