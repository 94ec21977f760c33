// Launchers of dropout_add_layer_norm: which kernel, how many threads a row, and every instantiation.
#include "dropout_add_layer_norm.cuh"

#include "../common/checks.h"
#include "../common/column_sum.h"
#include "../common/dispatch.h"

namespace fasttx {
namespace {

template <class Params>
void check(const char* name, const Params& p) {
  require(p.n_rows > 0 && p.n_rows <= INT32_MAX, name, "n_rows must lie in 1 .. 2^31 - 1");
  require(p.n_cols > 0, name, "n_cols must be positive");
  require(p.x.data != nullptr && p.mean != nullptr && p.rstd != nullptr, name, "x, mean and rstd must be given");
  check_dropout(name, p.dropout);
  if (p.weight.data != nullptr) require_float(p.weight.dtype, name);
}

}  // namespace

void dropout_add_layer_norm_fwd(const DropoutAddLayerNormFwdParams& p, Stream stream) {
  const char* name = "dropout_add_layer_norm_fwd";
  check(name, p);
  require(p.out.data != nullptr, name, "out must be given");
  if (p.bias.data != nullptr) require_float(p.bias.dtype, name);
  const DType residual = p.residual.data == nullptr ? p.x.dtype : p.residual.dtype;
  dispatch_floats({p.x.dtype, residual, p.out.dtype}, name, [&](auto type) {
    using T = typename decltype(type)::type;
    with_layer_norm_group(name, p.n_cols, [&](auto group, auto items) {
      launch_rows(name, p, dropout_add_layer_norm_fwd_kernel<T, group(), items()>, group, stream);
    });
  });
}

void dropout_add_layer_norm_bwd(const DropoutAddLayerNormBwdParams& p, Stream stream) {
  const char* name = "dropout_add_layer_norm_bwd";
  check(name, p);
  require(p.dout.data != nullptr, name, "dout must be given");
  ColumnSumParams sum{.out = {}, .partial = p.partial, .sums = 0, .programs = p.programs, .n_cols = p.n_cols};
  if (p.dweight.data != nullptr) sum.out[sum.sums++] = p.dweight;
  if (p.dbias.data != nullptr) sum.out[sum.sums++] = p.dbias;
  if (sum.sums > 0) check_column_sum(name, sum);
  const DType residual = p.residual.data == nullptr ? p.x.dtype : p.residual.dtype;
  const DType dx = p.dx.data == nullptr ? p.x.dtype : p.dx.dtype;
  const DType dresidual = p.dresidual.data == nullptr ? residual : p.dresidual.dtype;
  dispatch_floats({p.x.dtype, residual, p.dout.dtype, dx, dresidual}, name, [&](auto type) {
    using T = typename decltype(type)::type;
    with_layer_norm_group(name, p.n_cols, [&](auto group, auto items) {
      auto kernel = dropout_add_layer_norm_bwd_kernel<T, group(), items()>;
      sum.sums == 0 ? launch_rows(name, p, kernel, group, stream)
                    : launch_blocks(name, p, kernel, group, p.programs, stream);
    });
  });
  if (sum.sums > 0) column_sum(name, sum, stream);
}

}  // namespace fasttx
