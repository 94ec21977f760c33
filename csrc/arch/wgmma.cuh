// wgmma: d += a * b for a warpgroup (four warps), b in shared memory, a there or in registers. Compute capability 9.0,
// compiled for sm_90a.
//
// d is 64 x n, n / 2 registers a thread, n of FTX_WGMMA_SHAPES below; register i of a thread (w = warp in the group, g
// = lane / 4, t = lane % 4) holds
//   row 16 * w + g + 8 * (i / 2 % 2), column 8 * (i / 4) + 2 * t + i % 2.
// One wgmma takes 32 bytes of k. In shared memory, with the 128-byte swizzle of tma.cuh:
//   a is 64 x 32 bytes and b n x 32 bytes with k along the rows in memory (K-major);
//   or, for 16-bit types with kTransposedA or kTransposedB, 16 x 64 and 16 x n elements, with m or n along the rows
//   (MN-major).
// a in registers is 4 of them, of the 16 rows of each warp as in mma.cuh.
//
// Registers of d and a are the tensor cores' from the first wgmma to the wait, and shared memory must not change before
// it. The fence stands directly before the first wgmma of a group: behind a branch or the wait for an mbarrier ptxas
// puts in one of its own (C7519), or makes products wait for each other (C7510).
#pragma once
#include <cstdint>
#include <type_traits>

#include "launch.cuh"

namespace fasttx {

// The descriptor of an operand with the 128-byte swizzle that begins at `address`.
//   K-major:  tiles of 8 rows lie 1024 bytes apart; 32 bytes further in a row is the next k.
//   MN-major: 8 k are a tile of 1024 bytes, the next 8 follow; 16 k further is 2048 bytes further. Tiles of 64 rows or
//             columns lie `leading_bytes` apart, where an operand has more than one of them.
// Addresses are in 16 bytes: adding n / 16 to a descriptor moves it by n bytes, without making it anew.
FTX_DEVICE uint64_t wgmma_descriptor(uint32_t address, uint32_t leading_bytes = 16) {
  constexpr uint64_t kTileBytes = 1024, kSwizzle128 = 1;
  return (address & 0x3ffff) >> 4 | uint64_t{leading_bytes >> 4} << 16 | kTileBytes >> 4 << 32 | kSwizzle128 << 62;
}

// The compiler moves no access to these registers across: no instruction.
template <class D, int kCount>
FTX_DEVICE void wgmma_keep([[maybe_unused]] D (&d)[kCount]) {
#ifndef FASTTX_EMULATE
#pragma unroll
  for (int i = 0; i < kCount; i++) {
    if constexpr (std::is_same_v<D, float>) {
      asm volatile("" : "+f"(d[i])::"memory");
    } else {
      asm volatile("" : "+r"(d[i])::"memory");
    }
  }
#endif
}

// Before the first wgmma, and again after the program has touched registers of d or a: what was written to them is seen
// by the tensor cores. All that are in use are named, so that the compiler moves no access to one across.
template <class... D>
FTX_DEVICE void wgmma_fence([[maybe_unused]] D&... d) {
  (wgmma_keep(d), ...);
#ifdef FASTTX_EMULATE
  ::emu::wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

FTX_DEVICE void wgmma_commit() {
#ifdef FASTTX_EMULATE
  ::emu::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most the `kLeft` youngest groups are under way. Registers as in wgmma_fence.
template <int kLeft, class... D>
FTX_DEVICE void wgmma_wait([[maybe_unused]] D&... d) {
#ifdef FASTTX_EMULATE
  ::emu::wgmma_wait(kLeft);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
  (wgmma_keep(d), ...);
}

// clang-format off
#define FTX_N0 "%0, %1, %2, %3"
#define FTX_N1 "%4, %5, %6, %7"
#define FTX_N2 "%8, %9, %10, %11"
#define FTX_N3 "%12, %13, %14, %15"
#define FTX_N4 "%16, %17, %18, %19"
#define FTX_N5 "%20, %21, %22, %23"
#define FTX_N6 "%24, %25, %26, %27"
#define FTX_N7 "%28, %29, %30, %31"
#define FTX_N8 "%32, %33, %34, %35"
#define FTX_N9 "%36, %37, %38, %39"
#define FTX_N10 "%40, %41, %42, %43"
#define FTX_N11 "%44, %45, %46, %47"
#define FTX_N12 "%48, %49, %50, %51"
#define FTX_N13 "%52, %53, %54, %55"
#define FTX_N14 "%56, %57, %58, %59"
#define FTX_N15 "%60, %61, %62, %63"
#define FTX_N16 "%64, %65, %66, %67"
#define FTX_N17 "%68, %69, %70, %71"
#define FTX_N18 "%72, %73, %74, %75"
#define FTX_N19 "%76, %77, %78, %79"
#define FTX_N20 "%80, %81, %82, %83"
#define FTX_N21 "%84, %85, %86, %87"
#define FTX_N22 "%88, %89, %90, %91"
#define FTX_N23 "%92, %93, %94, %95"
#define FTX_N24 "%96, %97, %98, %99"
#define FTX_N25 "%100, %101, %102, %103"
#define FTX_N26 "%104, %105, %106, %107"
#define FTX_N27 "%108, %109, %110, %111"
#define FTX_N28 "%112, %113, %114, %115"
#define FTX_N29 "%116, %117, %118, %119"
#define FTX_N30 "%120, %121, %122, %123"
#define FTX_N31 "%124, %125, %126, %127"
#define FTX_D8 FTX_N0
#define FTX_D16 FTX_D8 ", " FTX_N1
#define FTX_D24 FTX_D16 ", " FTX_N2
#define FTX_D32 FTX_D24 ", " FTX_N3
#define FTX_D48 FTX_D32 ", " FTX_N4 ", " FTX_N5
#define FTX_D64 FTX_D48 ", " FTX_N6 ", " FTX_N7
#define FTX_D80 FTX_D64 ", " FTX_N8 ", " FTX_N9
#define FTX_D96 FTX_D80 ", " FTX_N10 ", " FTX_N11
#define FTX_D112 FTX_D96 ", " FTX_N12 ", " FTX_N13
#define FTX_D128 FTX_D112 ", " FTX_N14 ", " FTX_N15
#define FTX_D160 FTX_D128 ", " FTX_N16 ", " FTX_N17 ", " FTX_N18 ", " FTX_N19
#define FTX_D192 FTX_D160 ", " FTX_N20 ", " FTX_N21 ", " FTX_N22 ", " FTX_N23
#define FTX_D224 FTX_D192 ", " FTX_N24 ", " FTX_N25 ", " FTX_N26 ", " FTX_N27
#define FTX_D256 FTX_D224 ", " FTX_N28 ", " FTX_N29 ", " FTX_N30 ", " FTX_N31
#define FTX_FOUR(c, d, i) "+" c(d[i]), "+" c(d[i + 1]), "+" c(d[i + 2]), "+" c(d[i + 3])
#define FTX_O8(c, d) FTX_FOUR(c, d, 0)
#define FTX_O16(c, d) FTX_O8(c, d), FTX_FOUR(c, d, 4)
#define FTX_O24(c, d) FTX_O16(c, d), FTX_FOUR(c, d, 8)
#define FTX_O32(c, d) FTX_O24(c, d), FTX_FOUR(c, d, 12)
#define FTX_O48(c, d) FTX_O32(c, d), FTX_FOUR(c, d, 16), FTX_FOUR(c, d, 20)
#define FTX_O64(c, d) FTX_O48(c, d), FTX_FOUR(c, d, 24), FTX_FOUR(c, d, 28)
#define FTX_O80(c, d) FTX_O64(c, d), FTX_FOUR(c, d, 32), FTX_FOUR(c, d, 36)
#define FTX_O96(c, d) FTX_O80(c, d), FTX_FOUR(c, d, 40), FTX_FOUR(c, d, 44)
#define FTX_O112(c, d) FTX_O96(c, d), FTX_FOUR(c, d, 48), FTX_FOUR(c, d, 52)
#define FTX_O128(c, d) FTX_O112(c, d), FTX_FOUR(c, d, 56), FTX_FOUR(c, d, 60)
#define FTX_O160(c, d) FTX_O128(c, d), FTX_FOUR(c, d, 64), FTX_FOUR(c, d, 68), FTX_FOUR(c, d, 72), FTX_FOUR(c, d, 76)
#define FTX_O192(c, d) FTX_O160(c, d), FTX_FOUR(c, d, 80), FTX_FOUR(c, d, 84), FTX_FOUR(c, d, 88), FTX_FOUR(c, d, 92)
#define FTX_O224(c, d) FTX_O192(c, d), FTX_FOUR(c, d, 96), FTX_FOUR(c, d, 100), FTX_FOUR(c, d, 104), FTX_FOUR(c, d, 108)
#define FTX_O256(c, d) FTX_O224(c, d), FTX_FOUR(c, d, 112), FTX_FOUR(c, d, 116), FTX_FOUR(c, d, 120), FTX_FOUR(c, d, 124)
// of each n: the numbers of the operands behind d
#define FTX_WGMMA_SHAPES(f) \
  f(8, 4, 5, 6, 7, 8, 9, 10) \
  f(16, 8, 9, 10, 11, 12, 13, 14) \
  f(24, 12, 13, 14, 15, 16, 17, 18) \
  f(32, 16, 17, 18, 19, 20, 21, 22) \
  f(48, 24, 25, 26, 27, 28, 29, 30) \
  f(64, 32, 33, 34, 35, 36, 37, 38) \
  f(80, 40, 41, 42, 43, 44, 45, 46) \
  f(96, 48, 49, 50, 51, 52, 53, 54) \
  f(112, 56, 57, 58, 59, 60, 61, 62) \
  f(128, 64, 65, 66, 67, 68, 69, 70) \
  f(160, 80, 81, 82, 83, 84, 85, 86) \
  f(192, 96, 97, 98, 99, 100, 101, 102) \
  f(224, 112, 113, 114, 115, 116, 117, 118) \
  f(256, 128, 129, 130, 131, 132, 133, 134)
// clang-format on

#define FTX_PREDICATE(i) "{\n.reg .pred p;\nsetp.ne.b32 p, %" #i ", 0;\nwgmma.mma_async.sync.aligned.m64n"

#define FTX_IS_SHAPE(n, ...) || kN == n
template <int kN>
constexpr bool kWgmmaShape = false FTX_WGMMA_SHAPES(FTX_IS_SHAPE);
#undef FTX_IS_SHAPE

template <class T>
constexpr bool kWgmmaHalves = std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

// d = a * b, plus d if `accumulate`; both in shared memory. T is __half or __nv_bfloat16 with D = float, or int8_t with
// D = int and both K-major.
template <class T, bool kTransposedB = false, bool kTransposedA = false, class D, int kCount>
FTX_DEVICE void wgmma(D (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kWgmmaHalves<T> ? std::is_same_v<D, float> : std::is_same_v<T, int8_t> && std::is_same_v<D, int>);
  static_assert(kWgmmaHalves<T> || (!kTransposedA && !kTransposedB), "bytes have no MN-major form");
  constexpr int kN = 2 * kCount;
  static_assert(kWgmmaShape<kN>, "d has n / 2 registers, n of FTX_WGMMA_SHAPES");
#ifdef FASTTX_EMULATE
  constexpr auto kElement = std::is_same_v<T, __half>          ? ::emu::Element::kF16
                            : std::is_same_v<T, __nv_bfloat16> ? ::emu::Element::kBF16
                                                               : ::emu::Element::kS8;
  ::emu::wgmma({kElement, d, a, b, accumulate, kTransposedA, kTransposedB, kN, nullptr});
#else
  const int p = accumulate;
#define FTX_CASE(n, i0, i1, i2, i3, i4, i5, i6)                                                                        \
  if constexpr (kN == n && std::is_same_v<T, __half>) {                                                                \
    asm volatile(FTX_PREDICATE(i2) #n "k16.f32.f16.f16 {" FTX_D##n "}, %" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4   \
                                                                   ";\n}"                                              \
                 : FTX_O##n("f", d)                                                                                    \
                 : "l"(a), "l"(b), "r"(p), "n"(kTransposedA), "n"(kTransposedB));                                      \
  } else if constexpr (kN == n && std::is_same_v<T, __nv_bfloat16>) {                                                  \
    asm volatile(FTX_PREDICATE(i2) #n "k16.f32.bf16.bf16 {" FTX_D##n "}, %" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4 \
                                                                     ";\n}"                                            \
                 : FTX_O##n("f", d)                                                                                    \
                 : "l"(a), "l"(b), "r"(p), "n"(kTransposedA), "n"(kTransposedB));                                      \
  } else if constexpr (kN == n) {                                                                                      \
    asm volatile(FTX_PREDICATE(i2) #n "k32.s32.s8.s8 {" FTX_D##n "}, %" #i0 ", %" #i1 ", p;\n}"                        \
                 : FTX_O##n("r", d)                                                                                    \
                 : "l"(a), "l"(b), "r"(p));                                                                            \
  }
  FTX_WGMMA_SHAPES(FTX_CASE)
#undef FTX_CASE
#endif
}

// Likewise with a in registers, which nobody changes before the wait.
template <class T, bool kTransposedB = false, class D, int kCount>
FTX_DEVICE void wgmma(D (&d)[kCount], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(kWgmmaHalves<T> ? std::is_same_v<D, float> : std::is_same_v<T, int8_t> && std::is_same_v<D, int>);
  static_assert(kWgmmaHalves<T> || !kTransposedB, "bytes have no MN-major form");
  constexpr int kN = 2 * kCount;
  static_assert(kWgmmaShape<kN>, "d has n / 2 registers, n of FTX_WGMMA_SHAPES");
#ifdef FASTTX_EMULATE
  constexpr auto kElement = std::is_same_v<T, __half>          ? ::emu::Element::kF16
                            : std::is_same_v<T, __nv_bfloat16> ? ::emu::Element::kBF16
                                                               : ::emu::Element::kS8;
  ::emu::wgmma({kElement, d, 0, b, accumulate, false, kTransposedB, kN, a});
#else
  const int p = accumulate;
#define FTX_A(i0, i1, i2, i3) "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %"
#define FTX_CASE(n, i0, i1, i2, i3, i4, i5, i6)                                                                        \
  if constexpr (kN == n && std::is_same_v<T, __half>) {                                                                \
    asm volatile(FTX_PREDICATE(i5) #n "k16.f32.f16.f16 {" FTX_D##n FTX_A(i0, i1, i2, i3) #i4 ", p, 1, 1, %" #i6 ";\n}" \
                 : FTX_O##n("f", d)                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(p), "n"(kTransposedB));                     \
  } else if constexpr (kN == n && std::is_same_v<T, __nv_bfloat16>) {                                                  \
    asm volatile(FTX_PREDICATE(i5) #n "k16.f32.bf16.bf16 {" FTX_D##n FTX_A(i0, i1, i2, i3) #i4 ", p, 1, 1, %" #i6      \
                                                                                               ";\n}"                  \
                 : FTX_O##n("f", d)                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(p), "n"(kTransposedB));                     \
  } else if constexpr (kN == n) {                                                                                      \
    asm volatile(FTX_PREDICATE(i5) #n "k32.s32.s8.s8 {" FTX_D##n FTX_A(i0, i1, i2, i3) #i4 ", p;\n}"                   \
                 : FTX_O##n("r", d)                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(p));                                        \
  }
  FTX_WGMMA_SHAPES(FTX_CASE)
#undef FTX_CASE
#undef FTX_A
#endif
}

#undef FTX_PREDICATE
#undef FTX_WGMMA_SHAPES
#undef FTX_FOUR

}  // namespace fasttx
