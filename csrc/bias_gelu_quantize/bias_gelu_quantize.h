// The launcher of bias_gelu_quantize; formulas and contract stand in bias_gelu_quantize.cuh and
// fasttx/ops/bias_gelu_quantize/op.py.
#pragma once
#include "../common/types.h"

namespace fasttx {

struct BiasGeluQuantizeParams {
  int8_t* x_q;         // contiguous
  float* x_scale;      // (n_rows,)
  const void* x;       // rows at one stride, columns at stride 1
  In bias;             // may be absent
  const float* scale;  // one number for all rows; nullptr: each has its own
  DType dtype;         // of x
  int64_t n_rows, n_cols, stride_xm;
  bool tanh;
};

void bias_gelu_quantize_fwd(const BiasGeluQuantizeParams& params, Stream stream);

}  // namespace fasttx
