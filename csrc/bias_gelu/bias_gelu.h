// The launchers of bias_gelu; formulas and contract stand in bias_gelu.cuh and fasttx/ops/bias_gelu/op.py.
#pragma once
#include "../common/types.h"

namespace fasttx {

// How threads are laid over a tensor; the launcher fills it in.
struct GeluTiles {
  int lanes_log2 = 0;  // 2^lanes_log2 threads are side by side in a row, 8 columns each
  int64_t row_tiles = 0, col_tiles = 0;
};

// x and dout lie by rows at one stride, columns at stride 1; all else is contiguous.
struct BiasGeluFwdParams {
  void* out;
  const void* x;
  In bias;  // may be absent
  Dropout dropout;
  DType dtype;  // of x and out
  int64_t n_rows, n_cols, stride_xm;
  bool tanh;
  GeluTiles tiles{};
};

struct BiasGeluBwdParams {
  void* dx;  // may be absent
  Out dbias;
  float* partial;  // workspace, (row_programs, n_cols), where dbias is there
  In dout;
  const void* x;
  In bias;
  Dropout dropout;
  DType dtype;  // of x and dx
  int64_t n_rows, n_cols, stride_dm, stride_xm;
  int64_t row_programs;  // blocks that share the rows of the same columns, where there is a sum
  bool tanh;
  GeluTiles tiles{};
};

void bias_gelu_fwd(const BiasGeluFwdParams& params, Stream stream);
void bias_gelu_bwd(const BiasGeluBwdParams& params, Stream stream);

}  // namespace fasttx
