// The launcher of quantize_per_token; formulas and contract stand in quantize_per_token.cuh and
// fasttx/ops/quantize_per_token/op.py.
#pragma once
#include "../common/types.h"

namespace fasttx {

struct QuantizePerTokenParams {
  int8_t* x_q;         // contiguous
  float* x_scale;      // (n_rows,)
  const void* x;       // rows at one stride, columns at stride 1
  const float* scale;  // one number for all rows; nullptr: each has its own
  DType dtype;
  int64_t n_rows, n_cols, stride_xm;
};

void quantize_per_token_fwd(const QuantizePerTokenParams& params, Stream stream);

}  // namespace fasttx
