// Arithmetic that C++ has no operator for, or that nvcc makes more of than one instruction. Compute capability 8.0.
#pragma once
#include <cstdint>

#include "launch.cuh"

namespace fasttx {

constexpr float kLog2e = 1.4426950408889634f;  // exp(x) = exp2_ftz(x * kLog2e)

// 2^x within 2^-22 of it; a result below 2^-126 is 0. exp2f and __expf would scale x and the result around the same
// instruction, so that such results keep their bits.
FTX_DEVICE float exp2_ftz(float x) {
#ifdef FASTTX_EMULATE
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// e^x by the same: a multiplication more.
FTX_DEVICE float exp_ftz(float x) {
  return exp2_ftz(x * kLog2e);
}

// Byte i of the result is chosen by s, the 4 bits of `selector` from 4 * i on: byte s & 7 of the eight of (low, high),
// or where s & 8 is set eight times that byte's highest bit.
FTX_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef FASTTX_EMULATE
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t s = selector >> 4 * i & 15, byte = both >> 8 * (s & 7) & 255;
    result |= (s & 8 ? byte / 128 * 255 : byte) << 8 * i;
  }
  return result;
#else
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
#endif
}

// The two bfloat16 of a word as floats, the one in the low bits first: a shift and an AND.
FTX_DEVICE void widen_bf16(uint32_t word, float& first, float& second) {
#ifdef FASTTX_EMULATE
  const uint32_t bits[2] = {word << 16, word & 0xffff0000u};
  memcpy(&first, &bits[0], sizeof first);
  memcpy(&second, &bits[1], sizeof second);
#else
  first = __uint_as_float(word << 16);
  second = __uint_as_float(word & 0xffff0000u);
#endif
}

}  // namespace fasttx
