// Sixteen floats or integers at a time, whatever the width of a register here: every form computes the same bits.
//
// Nothing is contracted to a fused multiply-add (-ffp-contract=off), and sums have sixteen parts in every form. So what
// an element becomes depends neither on the instructions nor on how many rows or columns are beside it.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FTX_INLINE inline __attribute__((always_inline))

namespace fasttx::cpu {
namespace FTX_FORM {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = 16;               // of a vector as the kernels see it
constexpr int kWidth = kBytes / 4;       // of a register
constexpr int kParts = kLanes / kWidth;  // registers of a vector

typedef float FloatRegister __attribute__((vector_size(kBytes)));
typedef int32_t IntRegister __attribute__((vector_size(kBytes)));

struct Ints {
  IntRegister part[kParts];
};

struct Vector {
  FloatRegister part[kParts];
};

#define FTX_EACH for (int i = 0; i < kParts; i++)

FTX_INLINE Vector all(float value) {
  Vector v;
  FTX_EACH v.part[i] = value - FloatRegister{};
  return v;
}

FTX_INLINE Ints all_ints(int32_t value) {
  Ints v;
  FTX_EACH v.part[i] = value - IntRegister{};
  return v;
}

#define FTX_OPERATOR(type, op)                         \
  FTX_INLINE type operator op(type a, const type& b) { \
    FTX_EACH a.part[i] = a.part[i] op b.part[i];       \
    return a;                                          \
  }
FTX_OPERATOR(Vector, +)
FTX_OPERATOR(Vector, -)
FTX_OPERATOR(Vector, *)
FTX_OPERATOR(Vector, /)
FTX_OPERATOR(Ints, +)
FTX_OPERATOR(Ints, -)
FTX_OPERATOR(Ints, &)
FTX_OPERATOR(Ints, |)
FTX_OPERATOR(Ints, ^)
#undef FTX_OPERATOR

FTX_INLINE Ints operator>>(Ints a, int bits) {  // of the sign, too
  FTX_EACH a.part[i] = a.part[i] >> bits;
  return a;
}

FTX_INLINE Ints operator<<(Ints a, int bits) {
  FTX_EACH a.part[i] = a.part[i] << bits;
  return a;
}

FTX_INLINE Ints bits(const Vector& a) {
  Ints v;
  FTX_EACH v.part[i] = reinterpret_cast<IntRegister>(a.part[i]);
  return v;
}

FTX_INLINE Vector from_bits(const Ints& a) {
  Vector v;
  FTX_EACH v.part[i] = reinterpret_cast<FloatRegister>(a.part[i]);
  return v;
}

FTX_INLINE Vector to_floats(const Ints& a) {
  Vector v;
  FTX_EACH v.part[i] = __builtin_convertvector(a.part[i], FloatRegister);
  return v;
}

// a < b ? yes : no; a NaN gives `no`.
FTX_INLINE Vector if_less(const Vector& a, const Vector& b, Vector yes, const Vector& no) {
  FTX_EACH yes.part[i] = a.part[i] < b.part[i] ? yes.part[i] : no.part[i];
  return yes;
}

FTX_INLINE Ints larger(Ints a, const Ints& b) {
  FTX_EACH a.part[i] = a.part[i] > b.part[i] ? a.part[i] : b.part[i];
  return a;
}

FTX_INLINE Ints if_more(const Ints& a, const Ints& b, Ints yes, const Ints& no) {
  FTX_EACH yes.part[i] = a.part[i] > b.part[i] ? yes.part[i] : no.part[i];
  return yes;
}

FTX_INLINE Vector magnitude(const Vector& a) {
  return from_bits(bits(a) & all_ints(0x7fffffff));
}

constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves a small number rounded half to even, in the bits
constexpr int32_t kMagicBits = 0x4b400000;

// The nearest integer, half to even, of numbers of at most 2^22.
FTX_INLINE Ints rounded(const Vector& a) {
  return bits(a + all(kMagic)) - all_ints(kMagicBits);
}

FTX_INLINE float sum(const Vector& a) {
  float lane[kLanes];
  std::memcpy(lane, &a, sizeof lane);
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; i++) lane[i] = lane[i] + lane[i + step];
  }
  return lane[0];
}

FTX_INLINE int32_t largest(const Ints& a) {
  int32_t lane[kLanes], found;
  std::memcpy(lane, &a, sizeof lane);
  found = lane[0];
  for (int i = 1; i < kLanes; i++) found = lane[i] > found ? lane[i] : found;
  return found;
}

// ------------------------------------------------------------------------------------- memory of each dtype: 16 at a
// time

template <Dtype kDtype>
constexpr int64_t kSize = kDtype == Dtype::kFloat32 ? 4 : 2;

FTX_INLINE Ints load_shorts(const void* at) {
  Ints v;
#if defined(__AVX512F__)
  v.part[0] = (IntRegister)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(at)));
#elif defined(__AVX2__)
  FTX_EACH v.part[i] = (IntRegister)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(at) + i));
#else
  uint16_t in[kLanes];
  int32_t wide[kLanes];
  std::memcpy(in, at, sizeof in);
  for (int i = 0; i < kLanes; i++) wide[i] = in[i];
  std::memcpy(&v, wide, sizeof v);
#endif
  return v;
}

FTX_INLINE void store_shorts(void* at, const Ints& v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(static_cast<__m256i*>(at), _mm512_cvtepi32_epi16((__m512i)v.part[0]));
#else
  int32_t wide[kLanes];
  uint16_t out[kLanes];
  std::memcpy(wide, &v, sizeof v);
  for (int i = 0; i < kLanes; i++) out[i] = static_cast<uint16_t>(wide[i]);
  std::memcpy(at, out, sizeof out);
#endif
}

FTX_INLINE void store_bytes(int8_t* at, const Ints& v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8((__m512i)v.part[0]));
#elif defined(__AVX2__)
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)v.part[0], (__m256i)v.part[1]), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), bytes);
#else
  int32_t wide[kLanes];
  int8_t out[kLanes];
  std::memcpy(wide, &v, sizeof v);
  for (int i = 0; i < kLanes; i++) out[i] = static_cast<int8_t>(wide[i]);
  std::memcpy(at, out, sizeof out);
#endif
}

// float16 of integers alone, so that no form needs an instruction for it: subnormal numbers are multiples of 2^-24.
FTX_INLINE Vector from_half(const Ints& half) {
  const Ints sign = (half & all_ints(0x8000)) << 16, rest = half & all_ints(0x7fff);
  const Vector small = to_floats(rest) * all(0x1p-24f);
  const Ints wide = rest << 13;
  const Ints normal = if_more(rest, all_ints(0x7bff), wide + all_ints(0x70000000), wide + all_ints(0x38000000));
  return from_bits(sign | if_more(rest, all_ints(0x3ff), normal, bits(small)));
}

FTX_INLINE Ints to_half(const Vector& value) {
  const Ints in = bits(value), sign = (in >> 16) & all_ints(0x8000), rest = in & all_ints(0x7fffffff);
  // below 2^-14 the sum with 0.5 rounds to multiples of 2^-24, which are the bits of a subnormal number
  const Ints small = bits(from_bits(rest) + all(0.5f)) - all_ints(0x3f000000);
  const Ints odd = (rest >> 13) & all_ints(1);
  const Ints normal = (rest + all_ints(0xfff - 0x38000000) + odd) >> 13;
  const Ints finite = if_more(all_ints(0x38800000), rest, small, normal);
  const Ints special = if_more(rest, all_ints(0x7f800000), all_ints(0x7e00), all_ints(0x7c00));
  return sign | if_more(rest, all_ints(0x477fefff), special, finite);
}

FTX_INLINE Ints to_bfloat16(const Vector& value) {
  const Ints in = bits(value), odd = (in >> 16) & all_ints(1);
  const Ints nearest = (in + all_ints(0x7fff) + odd) >> 16;
  const Ints is_nan_of = in & all_ints(0x7fffffff);
  return if_more(is_nan_of, all_ints(0x7f800000), all_ints(0x7fc0), nearest);
}

template <Dtype kDtype>
FTX_INLINE Vector load(const void* data, int64_t index) {
  const char* at = static_cast<const char*>(data) + index * kSize<kDtype>;
  Vector v;
  if constexpr (kDtype == Dtype::kFloat32) {
    std::memcpy(&v, at, sizeof v);
  } else if constexpr (kDtype == Dtype::kBFloat16) {
    v = from_bits(load_shorts(at) << 16);
  } else {
    v = from_half(load_shorts(at));
  }
  return v;
}

template <Dtype kDtype>
FTX_INLINE void store(void* data, int64_t index, const Vector& v) {
  char* at = static_cast<char*>(data) + index * kSize<kDtype>;
  if constexpr (kDtype == Dtype::kFloat32) {
    std::memcpy(at, &v, sizeof v);
  } else if constexpr (kDtype == Dtype::kBFloat16) {
    store_shorts(at, to_bfloat16(v));
  } else {
    store_shorts(at, to_half(v));
  }
}

// Of the first `count` of sixteen; the others are 0.
template <Dtype kDtype>
FTX_INLINE Vector load_part(const void* data, int64_t index, int64_t count) {
  char room[kLanes * 4] = {};
  std::memcpy(room, static_cast<const char*>(data) + index * kSize<kDtype>, count * kSize<kDtype>);
  return load<kDtype>(room, 0);
}

template <Dtype kDtype>
FTX_INLINE void store_part(void* data, int64_t index, const Vector& v, int64_t count) {
  char room[kLanes * 4];
  store<kDtype>(room, 0, v);
  std::memcpy(static_cast<char*>(data) + index * kSize<kDtype>, room, count * kSize<kDtype>);
}

FTX_INLINE void store_bytes_part(int8_t* at, const Ints& v, int64_t count) {
  int8_t room[kLanes];
  store_bytes(room, v);
  std::memcpy(at, room, count);
}

// What v is after it was written in that dtype and read again.
template <Dtype kDtype>
FTX_INLINE Vector as_stored(const Vector& v) {
  if constexpr (kDtype == Dtype::kFloat32) return v;
  if constexpr (kDtype == Dtype::kBFloat16) return from_bits(to_bfloat16(v) << 16);
  return from_half(to_half(v));
}

// The same by a dtype that is known as the kernel runs.
FTX_INLINE Vector load_any(const Floats& t, int64_t index, int64_t count) {
  if (count >= kLanes) {
    if (t.dtype == Dtype::kFloat32) return load<Dtype::kFloat32>(t.data, index);
    if (t.dtype == Dtype::kBFloat16) return load<Dtype::kBFloat16>(t.data, index);
    return load<Dtype::kFloat16>(t.data, index);
  }
  if (t.dtype == Dtype::kFloat32) return load_part<Dtype::kFloat32>(t.data, index, count);
  if (t.dtype == Dtype::kBFloat16) return load_part<Dtype::kBFloat16>(t.data, index, count);
  return load_part<Dtype::kFloat16>(t.data, index, count);
}

FTX_INLINE Vector as_stored_any(Dtype dtype, const Vector& v) {
  if (dtype == Dtype::kFloat32) return v;
  return dtype == Dtype::kBFloat16 ? as_stored<Dtype::kBFloat16>(v) : as_stored<Dtype::kFloat16>(v);
}

FTX_INLINE void store_any(const FloatsOut& t, int64_t index, const Vector& v, int64_t count) {
  if (count >= kLanes) {
    if (t.dtype == Dtype::kFloat32) return store<Dtype::kFloat32>(t.data, index, v);
    if (t.dtype == Dtype::kBFloat16) return store<Dtype::kBFloat16>(t.data, index, v);
    return store<Dtype::kFloat16>(t.data, index, v);
  }
  if (t.dtype == Dtype::kFloat32) return store_part<Dtype::kFloat32>(t.data, index, v, count);
  if (t.dtype == Dtype::kBFloat16) return store_part<Dtype::kBFloat16>(t.data, index, v, count);
  return store_part<Dtype::kFloat16>(t.data, index, v, count);
}

}  // namespace FTX_FORM
}  // namespace fasttx::cpu
