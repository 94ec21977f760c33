// The tile of an int8 product by int8_linear_config.h, for tests.
#include "gemm.cuh"
#include "int8_linear/int8_linear_config.h"

FTX_EXPORT int run_int8_config(int64_t n_rows, int64_t n_out, int64_t n_in, int arch) {
  return fasttx::int8_linear_config(n_rows, n_out, n_in, arch);
}

FTX_EXPORT int64_t run_int8_clocks(int tile, int64_t n_rows, int64_t n_out, int64_t n_in, int arch) {
  return fasttx::clocks_of(fasttx::kInt8Tiles[tile], n_rows, n_out, n_in, arch);
}
