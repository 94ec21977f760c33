// Exact int32 sums of a few rows of x_q with a panel of 64 rows of w_q (columns of the result), for each form.
//
//   avx512    vpdpbusd. It takes one operand without a sign: w + 128, as 128 sum(x) is the same for a whole row and is
//             taken off at the end. Sums wrap around in between, and come out exact. A panel is packed as vpdpbusd
//             reads it, [k / 4][64][4], where that pays (enough rows); else the sums of a register are added up at the
//             end.
//   avx2      16-bit integers and vpmaddwd: vpmaddubsw would saturate.
//   portable  plain C++, which compilers make SSE2 or NEON of.
#pragma once
#include "vectors.h"

namespace fasttx::cpu {
namespace FTX_FORM {

// What the sums of a panel are made from.
struct Panel {
  const int8_t* w;  // of its first column
  int64_t stride, n_in;
  int columns;  // of kPanel
};

FTX_INLINE const int8_t* column(const Panel& panel, int n) {  // beyond the last one nobody looks at the sums
  return panel.w + (n < panel.columns ? n : panel.columns - 1) * panel.stride;
}

#if defined(__AVX512VNNI__)

constexpr int kTileRows = 6;
constexpr int kQuads = 4;  // columns whose sums are added up together

FTX_INLINE __mmask64 first_bytes(int64_t count) {
  return count >= 64 ? ~0ull : (1ull << count) - 1;
}

// Four sums of sixteen parts each.
FTX_INLINE __m128i add_up(const __m512i (&acc)[kQuads]) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[0], acc[1]), _mm512_unpackhi_epi32(acc[0], acc[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[2], acc[3]), _mm512_unpackhi_epi32(acc[2], acc[3]));
  const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

FTX_INLINE int32_t row_sum(const int8_t* x, int64_t n) {
  __m512i acc = _mm512_setzero_si512();
  for (int64_t k = 0; k < n; k += 64) {
    acc = _mm512_dpbusd_epi32(acc, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(first_bytes(n - k), x + k));
  }
  return _mm512_reduce_add_epi32(acc);
}

template <int kRows>
FTX_INLINE void dot_tile(const int8_t* x, int64_t stride, const Panel& panel, const int32_t* less, int32_t* sums) {
  const __m512i sign = _mm512_set1_epi8(-128);
  for (int n = 0; n < panel.columns; n += kQuads) {
    const int8_t* w[kQuads];
    for (int j = 0; j < kQuads; j++) w[j] = column(panel, n + j);
    __m512i acc[kRows][kQuads];
    for (int r = 0; r < kRows; r++) {
      for (int j = 0; j < kQuads; j++) acc[r][j] = _mm512_setzero_si512();
    }
    const auto step = [&](int64_t k, __mmask64 some) __attribute__((always_inline)) {
      __m512i v[kQuads];
      for (int j = 0; j < kQuads; j++) v[j] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(some, w[j] + k), sign);
      for (int r = 0; r < kRows; r++) {
        const __m512i u = _mm512_maskz_loadu_epi8(some, x + r * stride + k);
        for (int j = 0; j < kQuads; j++) acc[r][j] = _mm512_dpbusd_epi32(acc[r][j], v[j], u);
      }
    };
    int64_t k = 0;
    for (; k + 64 <= panel.n_in; k += 64) step(k, ~0ull);
    if (k < panel.n_in) step(k, first_bytes(panel.n_in - k));
    for (int r = 0; r < kRows; r++) {
      const __m128i four = _mm_sub_epi32(add_up(acc[r]), _mm_set1_epi32(less[r]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + r * kPanel + n), four);
    }
  }
}

template <int kRows>
FTX_INLINE void packed_tile(const int8_t* x, int64_t stride, const __m512i* w, int64_t steps, const int32_t* less,
                            int32_t* sums) {
  constexpr int kVectors = kPanel / 16;
  __m512i acc[kRows][kVectors];
  for (int r = 0; r < kRows; r++) {
    for (int j = 0; j < kVectors; j++) acc[r][j] = _mm512_set1_epi32(-less[r]);
  }
  for (int64_t s = 0; s < steps; s++) {
    __m512i v[kVectors];
    for (int j = 0; j < kVectors; j++) v[j] = _mm512_loadu_si512(w + s * kVectors + j);
    for (int r = 0; r < kRows; r++) {
      int32_t four;
      std::memcpy(&four, x + r * stride + 4 * s, 4);
      const __m512i u = _mm512_set1_epi32(four);
      for (int j = 0; j < kVectors; j++) acc[r][j] = _mm512_dpbusd_epi32(acc[r][j], v[j], u);
    }
  }
  for (int r = 0; r < kRows; r++) {
    for (int j = 0; j < kVectors; j++) _mm512_storeu_si512(sums + r * kPanel + 16 * j, acc[r][j]);
  }
}

// Sixteen rows of sixteen 4-byte groups become sixteen rows of the same group.
FTX_INLINE void transpose(__m512i (&v)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; j++) {
      v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  }
  for (int i = 0; i < 4; i++) {  // lanes of 16 bytes
    t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

FTX_INLINE void pack(const Panel& panel, __m512i* out) {
  const __m512i sign = _mm512_set1_epi8(-128);
  const int64_t steps = panel.n_in / 4;
  for (int j = 0; j < kPanel / 16; j++) {
    const int8_t* from[16];
    for (int i = 0; i < 16; i++) from[i] = column(panel, 16 * j + i);
    for (int64_t k = 0; k < panel.n_in; k += 64) {
      const __mmask64 some = first_bytes(panel.n_in - k);
      __m512i v[16];
      for (int i = 0; i < 16; i++) {
        // the next sixteen rows: they are too short for the CPU to see that they are read one after the other
        _mm_prefetch(reinterpret_cast<const char*>(from[i] + 16 * panel.stride + k), _MM_HINT_T0);
        v[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(some, from[i] + k), sign);
      }
      transpose(v);
      for (int i = 0; i < 16 && k / 4 + i < steps; i++)
        _mm512_storeu_si512(out + (k / 4 + i) * (kPanel / 16) + j, v[i]);
    }
  }
}

#elif defined(__AVX2__)

constexpr int kTileRows = 2;

template <int kRows>
FTX_INLINE void dot_tile(const int8_t* x, int64_t stride, const Panel& panel, const int32_t*, int32_t* sums) {
  constexpr int kQuads = 4;
  const auto words = [](const int8_t* at) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  };
  for (int n = 0; n < panel.columns; n += kQuads) {
    const int8_t* w[kQuads];
    for (int j = 0; j < kQuads; j++) w[j] = column(panel, n + j);
    __m256i acc[kRows][kQuads];
    for (int r = 0; r < kRows; r++) {
      for (int j = 0; j < kQuads; j++) acc[r][j] = _mm256_setzero_si256();
    }
    int64_t k = 0;
    for (; k + 16 <= panel.n_in; k += 16) {
      __m256i u[kRows];
      for (int r = 0; r < kRows; r++) u[r] = words(x + r * stride + k);
      for (int j = 0; j < kQuads; j++) {
        const __m256i v = words(w[j] + k);
        for (int r = 0; r < kRows; r++) acc[r][j] = _mm256_add_epi32(acc[r][j], _mm256_madd_epi16(u[r], v));
      }
    }
    for (int r = 0; r < kRows; r++) {
      const __m256i a = _mm256_hadd_epi32(acc[r][0], acc[r][1]), b = _mm256_hadd_epi32(acc[r][2], acc[r][3]);
      const __m256i c = _mm256_hadd_epi32(a, b);
      const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + r * kPanel + n), four);
      for (int64_t i = k; i < panel.n_in; i++) {
        for (int j = 0; j < kQuads; j++) sums[r * kPanel + n + j] += x[r * stride + i] * w[j][i];
      }
    }
  }
}

#else

constexpr int kTileRows = 1;

template <int kRows>
FTX_INLINE void dot_tile(const int8_t* x, int64_t, const Panel& panel, const int32_t*, int32_t* sums) {
  for (int n = 0; n < panel.columns; n++) {
    const int8_t* w = column(panel, n);
    int32_t total = 0;
    for (int64_t k = 0; k < panel.n_in; k++) total += static_cast<int16_t>(x[k]) * static_cast<int16_t>(w[k]);
    sums[n] = total;
  }
}

#endif

}  // namespace FTX_FORM
}  // namespace fasttx::cpu
