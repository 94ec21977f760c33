// The launcher of add_layer_norm_quantize; formulas and contract stand in add_layer_norm_quantize.cuh and
// fasttx/ops/add_layer_norm_quantize/op.py.
#pragma once
#include "../common/types.h"

namespace fasttx {

// x and residual lie by rows at one stride, columns at stride 1; all else is contiguous.
struct AddLayerNormQuantizeParams {
  Out out;
  int8_t* x_q;
  float* x_scale;                // (n_rows,)
  In x, residual, weight, bias;  // all but x may be absent
  const float* scale;            // one number for all rows; nullptr: each has its own
  int64_t n_rows, n_cols, stride_xm, stride_rm;
  float eps;
};

void add_layer_norm_quantize_fwd(const AddLayerNormQuantizeParams& params, Stream stream);

}  // namespace fasttx
