// ldmatrix: four 8 x 8 matrices of 16-bit elements from shared memory into the registers of one warp. Capability 7.5.
//
// Lane i gives the address of row i % 8 of matrix i / 8: 16 bytes, at a multiple of 16. Register m of a lane then holds
// of matrix m (g = lane / 4, t = lane % 4)
//   ldmatrix:             row g, columns 2 * t and 2 * t + 1
//   ldmatrix_transposed:  rows 2 * t and 2 * t + 1, column g
// the lower one in the low bits. Rows of 16 signed bytes are moved by the first form just as well.
#pragma once
#include <cstdint>

#include "launch.cuh"

namespace fasttx {

FTX_DEVICE void ldmatrix(uint32_t (&r)[4], uint32_t row) {
#ifdef FASTTX_EMULATE
  ::emu::ldmatrix_x4(r, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
#endif
}

FTX_DEVICE void ldmatrix_transposed(uint32_t (&r)[4], uint32_t row) {
#ifdef FASTTX_EMULATE
  ::emu::ldmatrix_x4(r, row, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
#endif
}

}  // namespace fasttx
