// Launcher of int8_linear: which tile, and every instantiation.
#include "int8_linear_sm80.cuh"

#include <string>

#include "../common/checks.h"

namespace fasttx {
namespace {

void check(const char* name, const Int8LinearParams& p) {
  require(p.n_rows > 0 && p.n_rows < INT32_MAX - 1023, name, "n_rows must lie in 1 .. 2^31 - 1025");
  require(p.n_out > 0 && p.n_out < INT32_MAX - 1023, name, "n_out must lie in 1 .. 2^31 - 1025");
  require(p.n_in > 0 && p.n_in <= INT32_MAX / (128 * 128), name,
          "n_in must lie in 1 .. 131071, whose sums int32 holds");
  require(p.out.data != nullptr && p.x_q != nullptr && p.w_q != nullptr, name, "out, x_q and w_q must be given");
  require(p.x_scale != nullptr && p.w_scale != nullptr, name, "x_scale and w_scale must be given");
  require_float(p.out.dtype, name);
  require_floats(p.bias, name, "bias must be float32, float16 or bfloat16");
  require_floats(p.residual, name, "residual must be float32, float16 or bfloat16");
  require(p.activation >= 0 && p.activation <= 2, name, "activation must be one of 0 .. 2");
  require(p.tile >= -1 && p.tile < kInt8TileCount, name, "tile must be -1 or the number of one");
}

bool at_16_bytes(const void* rows, int64_t stride) {
  return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride % 16 == 0;
}

template <int kTile, bool kAligned>
void start(const char* name, const Int8LinearParams& p, Stream stream) {
  const std::string shape = std::to_string(p.n_rows) + " x " + std::to_string(p.n_in) + " x " + std::to_string(p.n_out);
  const int64_t blocks = blocks_of(kInt8Tiles[kTile], p.n_rows, p.n_out);
  require(blocks <= INT32_MAX, name, "more tiles than a grid has blocks");
  launch(name, shape, int8_linear_kernel<kTile, kAligned>, dim3(blocks), dim3(kInt8Threads), stream, p,
         Int8Shape<kTile>::kRingBytes);
}

template <int... kTiles>
void start_tile(std::integer_sequence<int, kTiles...>, int tile, const char* name, const Int8LinearParams& p,
                Stream stream) {
  ((tile == kTiles ? start<kTiles, true>(name, p, stream) : void()), ...);
}

}  // namespace

void int8_linear_fwd(const Int8LinearParams& p, Stream stream) {
  const char* name = "int8_linear_fwd";
  check(name, p);
  const bool aligned = p.n_in % 16 == 0 && at_16_bytes(p.x_q, p.stride_xm) && at_16_bytes(p.w_q, p.stride_wn);
  if (!aligned) return start<kInt8UnalignedTile, false>(name, p, stream);
  const int tile = p.tile >= 0 ? p.tile : int8_linear_config(p.n_rows, p.n_out, p.n_in, current_device().arch);
  start_tile(std::make_integer_sequence<int, kInt8TileCount>(), tile, name, p, stream);
}

}  // namespace fasttx
