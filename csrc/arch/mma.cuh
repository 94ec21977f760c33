// mma.sync: d += a * b for one warp, accumulated in float or int32. Compute capability 8.0.
//
// Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16 / m16n8k32"); g = lane / 4, t = lane % 4. A register of a or b
// holds consecutive k, the lowest in the low bits: E = 2 of 16 bits or E = 4 of 8 bits.
//   a (16 x 8E), registers i = 0 .. 3:  row g + 8 * (i % 2), k = E * t .. + E, plus 4E * (i / 2)
//   b (8E x 8), registers i = 0, 1:     column g,            k = E * t .. + E, plus 4E * i
//   d (16 x 8), registers i = 0 .. 3:   row g + 8 * (i / 2), column 2 * t + i % 2
#pragma once
#include <cstdint>
#include <type_traits>

#include "launch.cuh"

namespace fasttx {

// m16n8k16. T is __half or __nv_bfloat16.
template <class T>
FTX_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
#ifdef FASTTX_EMULATE
  const uint32_t b[2] = {b0, b1};
  ::emu::mma_m16n8k16(std::is_same_v<T, __half> ? ::emu::Element::kF16 : ::emu::Element::kBF16, d, a, b);
#else
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// m16n8k32 of signed bytes. T is int8_t.
template <class T>
FTX_DEVICE void mma(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(std::is_same_v<T, int8_t>);
#ifdef FASTTX_EMULATE
  const uint32_t b[2] = {b0, b1};
  ::emu::mma_m16n8k32(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace fasttx
