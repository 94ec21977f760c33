// The tile of an int8 product, and where its chunks of 16 bytes lie in shared memory, for tests.
#include "gemm.cuh"
#include "int8_linear/int8_epilogue.cuh"

namespace {
using namespace fasttx;

// f(Int8Shape of the tile)
template <int kTile = 0, class F>
int with_shape(int tile, F&& f) {
  if (tile == kTile) return f(Int8Shape<kTile>{});
  if constexpr (kTile + 1 < kInt8TileCount) return with_shape<kTile + 1>(tile, f);
  return -1;
}
}  // namespace

FTX_EXPORT int run_int8_config(int64_t n_rows, int64_t n_out, int64_t n_in, int arch) {
  return int8_linear_config(n_rows, n_out, n_in, arch);
}

FTX_EXPORT int64_t run_int8_clocks(int tile, int64_t n_rows, int64_t n_out, int64_t n_in, int arch) {
  return clocks_of(kInt8Tiles[tile], n_rows, n_out, n_in, arch);
}

FTX_EXPORT int run_int8_ring(int tile, int row, int chunk) {
  return with_shape(tile, [&](auto shape) { return static_cast<int>(chunk_at<decltype(shape)::kBlockK>(row, chunk)); });
}

FTX_EXPORT int run_int8_staging(int tile, int row, int chunk) {
  return with_shape(tile, [&](auto shape) { return Int8Staging<decltype(shape)>::chunk_at(row, chunk) * 16; });
}
