// The launcher of int8_linear; formulas and contract stand in int8_linear_sm80.cuh and fasttx/ops/int8_linear/op.py.
#pragma once
#include "../common/types.h"

namespace fasttx {

enum class Activation : int { kNone, kGelu, kGeluTanh };

struct Int8LinearParams {
  Out out;               // contiguous
  const int8_t* x_q;     // (n_rows, n_in), rows at one stride, columns at stride 1
  const int8_t* w_q;     // (n_out, n_in) likewise
  const float* x_scale;  // (n_rows,)
  const float* w_scale;  // (n_out,)
  In bias;               // (n_out,), may be absent
  In residual;           // (n_rows, n_out), rows at one stride; may be absent
  int64_t n_rows, n_out, n_in, stride_xm, stride_wn, stride_rm;
  int activation;  // an Activation
  int tile;        // a number in kInt8Tiles; -1: the one of int8_linear_config
};

void int8_linear_fwd(const Int8LinearParams& params, Stream stream);

}  // namespace fasttx
