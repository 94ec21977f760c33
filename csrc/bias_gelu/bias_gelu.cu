// Launchers of bias_gelu: which kernel, how its threads lie, and every instantiation.
#include "bias_gelu.cuh"

#include <string>

#include "../common/checks.h"
#include "../common/column_sum.h"
#include "../common/dispatch.h"

namespace fasttx {
namespace {

template <class Params>
void check(const char* name, const Params& p) {
  // a tile may reach beyond the tensor, and is counted in 32 bits all the same
  require(p.n_rows > 0 && p.n_rows < INT32_MAX - 2047, name, "n_rows must lie in 1 .. 2^31 - 2049");
  require(p.n_cols > 0 && p.n_cols < INT32_MAX - 2047, name, "n_cols must lie in 1 .. 2^31 - 2049");
  require(p.x != nullptr, name, "x must be given");
  if (p.bias.data != nullptr) require_float(p.bias.dtype, name);
  check_dropout(name, p.dropout);
}

GeluTiles tiles_of(int64_t n_rows, int64_t n_cols, int rows_of_thread) {
  GeluTiles tiles;
  while (tiles.lanes_log2 < 5 && (kRowRun << tiles.lanes_log2) < n_cols) tiles.lanes_log2++;
  const int64_t columns = kRowRun << tiles.lanes_log2, rows = (kGeluThreads >> tiles.lanes_log2) * rows_of_thread;
  tiles.col_tiles = (n_cols + columns - 1) / columns;
  tiles.row_tiles = (n_rows + rows - 1) / rows;
  return tiles;
}

template <class Params>
void start(const char* name, const Params& p, void (*kernel)(Params), int64_t row_blocks, Stream stream) {
  const std::string shape = std::to_string(p.n_rows) + " x " + std::to_string(p.n_cols);
  require(row_blocks <= INT32_MAX / p.tiles.col_tiles, name, "more tiles than a grid has blocks");
  launch(name, shape, kernel, dim3(row_blocks * p.tiles.col_tiles), dim3(kGeluThreads), stream, p);
}

}  // namespace

void bias_gelu_fwd(const BiasGeluFwdParams& params, Stream stream) {
  const char* name = "bias_gelu_fwd";
  BiasGeluFwdParams p = params;
  check(name, p);
  require(p.out != nullptr, name, "out must be given");
  p.tiles = tiles_of(p.n_rows, p.n_cols, kGeluFwdRows);
  dispatch_float(p.dtype, name, [&](auto type) {
    start(name, p, bias_gelu_fwd_kernel<typename decltype(type)::type>, p.tiles.row_tiles, stream);
  });
}

void bias_gelu_bwd(const BiasGeluBwdParams& params, Stream stream) {
  const char* name = "bias_gelu_bwd";
  BiasGeluBwdParams p = params;
  check(name, p);
  require(p.dout.data != nullptr, name, "dout must be given");
  require_float(p.dout.dtype, name);
  p.tiles = tiles_of(p.n_rows, p.n_cols, kGeluBwdRows);
  const bool summed = p.dbias.data != nullptr;
  const ColumnSumParams sum{
      .out = {p.dbias}, .partial = p.partial, .sums = 1, .programs = p.row_programs, .n_cols = p.n_cols};
  if (summed) check_column_sum(name, sum);
  if (!summed) p.row_programs = p.tiles.row_tiles;
  dispatch_float(p.dtype, name, [&](auto type) {
    using T = typename decltype(type)::type;
    auto kernel = p.dout.dtype == p.dtype ? bias_gelu_bwd_kernel<T, T> : bias_gelu_bwd_kernel<T, Any>;
    start(name, p, kernel, p.row_programs, stream);
  });
  if (summed) column_sum(name, sum, stream);
}

}  // namespace fasttx
