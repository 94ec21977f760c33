// wgmma: d += a * b for a warpgroup (four warps), a and b in shared memory. Compute capability 9.0, compiled for
// sm_90a.
//
// d is 64 x 64; register i of a thread (w = warp in the group, g = lane / 4, t = lane % 4) holds
//   row 16 * w + g + 8 * (i / 2 % 2), column 8 * (i / 4) + 2 * t + i % 2.
// a is 64 x 32 bytes with k along the rows in memory (K-major); b is 64 x 32 bytes likewise, or, for 16-bit types with
// kTransposedB, 16 x 64 elements with n along the rows (MN-major). Both have the 128-byte swizzle of tma.cuh.
//
// Registers of d are the tensor cores' from the first wgmma to the wait, and shared memory must not change before it.
#pragma once
#include <cstdint>
#include <type_traits>

#include "launch.cuh"

namespace fasttx {

// The descriptor of an operand with the 128-byte swizzle that begins at `address`.
//   K-major:  tiles of 8 rows lie 1024 bytes apart; 32 bytes further in a row is the next k.
//   MN-major: 8 k are a tile of 1024 bytes, the next 8 follow; 16 k further is 2048 bytes further.
// The leading dimension is not used by either, as all 64 rows or columns of an operand lie in one row of tiles.
FTX_DEVICE uint64_t wgmma_descriptor(uint32_t address) {
  constexpr uint64_t kTileBytes = 1024, kSwizzle128 = 1;
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | kTileBytes >> 4 << 32 | kSwizzle128 << 62;
}

#define FTX_EIGHT(c, d, i)                                                                                           \
  "+" c(d[i]), "+" c(d[i + 1]), "+" c(d[i + 2]), "+" c(d[i + 3]), "+" c(d[i + 4]), "+" c(d[i + 5]), "+" c(d[i + 6]), \
      "+" c(d[i + 7])
#define FTX_ALL(c, d) FTX_EIGHT(c, d, 0), FTX_EIGHT(c, d, 8), FTX_EIGHT(c, d, 16), FTX_EIGHT(c, d, 24)
#define FTX_D                                                                                                  \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31}"

// Before the first wgmma, and again after the program has touched d: what was written to d is seen by the tensor cores.
// d is an operand, so that the compiler moves no access to it across.
template <class D>
FTX_DEVICE void wgmma_fence([[maybe_unused]] D (&d)[32]) {
#ifdef FASTTX_EMULATE
  ::emu::wgmma_fence();
#else
  if constexpr (std::is_same_v<D, float>) {
    asm volatile("wgmma.fence.sync.aligned;" : FTX_ALL("f", d)::"memory");
  } else {
    asm volatile("wgmma.fence.sync.aligned;" : FTX_ALL("r", d)::"memory");
  }
#endif
}

FTX_DEVICE void wgmma_commit() {
#ifdef FASTTX_EMULATE
  ::emu::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most the `kLeft` youngest groups are under way. d as in wgmma_fence.
template <int kLeft, class D>
FTX_DEVICE void wgmma_wait([[maybe_unused]] D (&d)[32]) {
#ifdef FASTTX_EMULATE
  ::emu::wgmma_wait(kLeft);
#else
  if constexpr (std::is_same_v<D, float>) {
    asm volatile("wgmma.wait_group.sync.aligned %32;" : FTX_ALL("f", d) : "n"(kLeft) : "memory");
  } else {
    asm volatile("wgmma.wait_group.sync.aligned %32;" : FTX_ALL("r", d) : "n"(kLeft) : "memory");
  }
#endif
}

// m64n64k16, T is __half or __nv_bfloat16: d = a * b, plus d if `accumulate`.
template <class T, bool kTransposedB>
FTX_DEVICE void wgmma(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
#ifdef FASTTX_EMULATE
  ::emu::wgmma(std::is_same_v<T, __half> ? ::emu::Element::kF16 : ::emu::Element::kBF16, d, a, b, accumulate,
               kTransposedB);
#else
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " FTX_D
                 ", %32, %33, p, 1, 1, 0, %35;\n}"
                 : FTX_ALL("f", d)
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposedB));
  } else {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " FTX_D
                 ", %32, %33, p, 1, 1, 0, %35;\n}"
                 : FTX_ALL("f", d)
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposedB));
  }
#endif
}

// m64n64k32 of signed bytes, both K-major.
template <class T, bool kTransposedB>
FTX_DEVICE void wgmma(int (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(std::is_same_v<T, int8_t> && !kTransposedB, "bytes have no MN-major form");
#ifdef FASTTX_EMULATE
  ::emu::wgmma(::emu::Element::kS8, d, a, b, accumulate, false);
#else
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 " FTX_D
               ", %32, %33, p;\n}"
               : FTX_ALL("r", d)
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
#endif
}

#undef FTX_EIGHT
#undef FTX_ALL
#undef FTX_D

}  // namespace fasttx
