// The launchers of dropout_add_layer_norm; formulas and contract stand in dropout_add_layer_norm.cuh and
// fasttx/ops/dropout_add_layer_norm/op.py.
#pragma once
#include "../common/types.h"

namespace fasttx {

// x, residual and dout lie by rows at one stride, columns at stride 1; all else is contiguous.
struct DropoutAddLayerNormFwdParams {
  Out out;
  float* mean;  // (n_rows,)
  float* rstd;
  In x, residual, weight, bias;  // all but x may be absent
  Dropout dropout;
  int64_t n_rows, n_cols, stride_xm, stride_rm;
  float eps;
};

struct DropoutAddLayerNormBwdParams {
  Out dx, dresidual, dweight, dbias;  // each may be absent
  float* partial;                     // workspace, (sums, programs, n_cols), where dweight or dbias is there
  In dout, x, residual, weight;
  const float* mean;
  const float* rstd;
  Dropout dropout;
  int64_t n_rows, n_cols, stride_dm, stride_xm, stride_rm;
  int64_t programs;  // blocks that share the rows, where there are sums
};

void dropout_add_layer_norm_fwd(const DropoutAddLayerNormFwdParams& params, Stream stream);
void dropout_add_layer_norm_bwd(const DropoutAddLayerNormBwdParams& params, Stream stream);

}  // namespace fasttx
