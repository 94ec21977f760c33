// Types that cross from the bindings to the launchers: no CUDA header, no template.
#pragma once
#include <cstdint>

namespace fasttx {

using Stream = void*;  // a cudaStream_t; the bindings know it as a number

enum class DType : int { kFloat32, kFloat16, kBFloat16, kFloat64, kBool, kInt8, kInt32, kInt64 };

// A tensor of a float type of its own; data is nullptr where there is none, and its type is not looked at then.
struct In {
  const void* data;
  DType dtype;
};

struct Out {
  void* data;
  DType dtype;
};

// int32 or, if is_long, int64 numbers; nullptr: none.
struct Indices {
  const void* data;
  bool is_long;
};

// Row-wise dropout; the rows are counted by row_index, from 0 without one.
struct Dropout {
  const int64_t* rng_state;  // (seed, offset) on the device; nullptr: no dropout
  Indices row_index;
  int threshold;  // smallest byte that is kept
  float keep_scale;
};

}  // namespace fasttx
