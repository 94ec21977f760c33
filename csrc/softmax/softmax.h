// The softmax op's launchers; formulas and contract stand in softmax.cuh and fasttx/ops/softmax/op.py.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace fasttx {

// Rows lie at one stride, columns at stride 1. The mask broadcasts: row = ((i0 * sizes[0] + i1) * sizes[1] + i2) *
// sizes[2]
// + i3 lies at sum i_k * strides[k], its columns at strides[4]; a stride is 0 where the mask has size 1.
struct SoftmaxMask {
  const void* data;  // nullptr: none
  DType dtype;       // kBool keeps where true; a float type is added
  int64_t sizes[3];
  int64_t strides[5];
};

struct SoftmaxFwdParams {
  void* out;  // contiguous
  const void* x;
  SoftmaxMask mask;
  const int64_t* rng_state;  // (seed, offset) on the device; nullptr: no dropout
  DType dtype;
  int64_t n_rows, n_cols, stride_xm;
  float scale;
  int threshold;  // smallest byte that is kept
  float keep_scale;
  bool log;
};

struct SoftmaxBwdParams {
  void* dx;  // contiguous
  const void* dout;
  const void* saved;  // out without dropout, x with it
  SoftmaxMask mask;
  const int64_t* rng_state;
  DType dtype;
  int64_t n_rows, n_cols, stride_dm, stride_sm;
  float scale;
  int threshold;
  float keep_scale;
  bool log;
};

void softmax_fwd(const SoftmaxFwdParams& params, Stream stream);
void softmax_bwd(const SoftmaxBwdParams& params, Stream stream);

}  // namespace fasttx
