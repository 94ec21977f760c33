// Runs of consecutive elements between memory and float registers, 16 bytes an access where the address allows it.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../arch/aligned.cuh"
#include "../arch/math.cuh"
#include "../arch/store.cuh"

namespace fasttx {

FTX_DEVICE float to_float(float x) {
  return x;
}
FTX_DEVICE float to_float(__half x) {
  return __half2float(x);
}
FTX_DEVICE float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
FTX_DEVICE void from_float(float x, float* out) {
  *out = x;
}
FTX_DEVICE void from_float(float x, __half* out) {
  *out = __float2half_rn(x);
}
FTX_DEVICE void from_float(float x, __nv_bfloat16* out) {
  *out = __float2bfloat16_rn(x);
}

template <class T>
constexpr int kVectorWidth = 16 / sizeof(T);

template <class T, int kWidth = kVectorWidth<T>>
struct alignas(sizeof(T) * kWidth) Vector {
  T values[kWidth];
};

// kRun elements as they lie in memory: those of several tensors are read before the first is converted, so that all
// loads are on their way at once.
template <class T, int kRun>
struct RawRun {
  static constexpr int kWidth = kRun < kVectorWidth<T> ? kRun : kVectorWidth<T>;
  static_assert(kRun % kWidth == 0, "a run is made of whole vectors");
  Vector<T, kWidth> vectors[kRun / kWidth];

  // p lies at a multiple of 16 bytes, or of the run's where it has less.
  FTX_DEVICE void read(const T* p) {
#pragma unroll
    for (int v = 0; v < kRun / kWidth; v++) vectors[v] = aligned_at<Vector<T, kWidth>>(p + v * kWidth);
  }

  // p[i] for low <= i < high, element by element.
  FTX_DEVICE void read_part(const T* p, uint32_t low, uint32_t high) {
#pragma unroll
    for (uint32_t i = 0; i < kRun; i++) {
      if (i >= low && i < high) vectors[i / kWidth].values[i % kWidth] = p[i];
    }
  }

  FTX_DEVICE void widen(float* out) const {
#pragma unroll
    for (int i = 0; i < kRun; i++) {
      if constexpr (std::is_same_v<T, __nv_bfloat16> && kWidth % 2 == 0) {
        if (i % 2 != 0) continue;
        uint32_t pair;
        memcpy(&pair, &vectors[i / kWidth].values[i % kWidth], sizeof pair);
        widen_bf16(pair, out[i], out[i + 1]);
      } else {
        out[i] = to_float(vectors[i / kWidth].values[i % kWidth]);
      }
    }
  }
};

FTX_DEVICE bool is_vector_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// out[i] = p[i] for low <= i < high, `other` for the rest of 0 .. kRun. `aligned` says that p lies at a multiple of 16
// bytes, or of the run's where it has less.
template <int kRun, class T>
FTX_DEVICE void load_part(const T* p, uint32_t low, uint32_t high, bool aligned, float other, float* out) {
  if (aligned && low == 0 && high >= kRun) {
    RawRun<T, kRun> raw;
    raw.read(p);
    raw.widen(out);
  } else {
#pragma unroll
    for (uint32_t i = 0; i < kRun; i++) out[i] = i >= low && i < high ? to_float(p[i]) : other;
  }
}

// p[i] = in[i] for low <= i < high, rounded to nearest.
template <int kRun, class T>
FTX_DEVICE void store_part(T* p, uint32_t low, uint32_t high, bool aligned, const float* in) {
  constexpr int kWidth = kVectorWidth<T>;
  static_assert(kRun % kWidth == 0, "a run is made of whole vectors");
  if (aligned && low == 0 && high >= kRun) {
#pragma unroll
    for (int v = 0; v < kRun; v += kWidth) {
      Vector<T> vector;
#pragma unroll
      for (int i = 0; i < kWidth; i++) from_float(in[v + i], &vector.values[i]);
      uint4 words;
      memcpy(&words, &vector, sizeof words);
      store_vector(p + v, words);
    }
  } else {
#pragma unroll
    for (uint32_t i = 0; i < kRun; i++) {
      if (i >= low && i < high) from_float(in[i], p + i);
    }
  }
}

// out = p[0 .. kRun), 0 from `valid` on.
template <int kRun, class T>
FTX_DEVICE void load_run(const T* p, uint32_t valid, bool aligned, float* out) {
  load_part<kRun>(p, 0, valid, aligned, 0.0f, out);
}

// p[0 .. min(kRun, valid)) = in.
template <int kRun, class T>
FTX_DEVICE void store_run(T* p, uint32_t valid, bool aligned, const float* in) {
  store_part<kRun>(p, 0, valid, aligned, in);
}

}  // namespace fasttx
