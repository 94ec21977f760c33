// The end of a loss: what the blocks of a forward kernel left in a workspace, added up.
#pragma once
#include <cstdint>

#include "types.h"

namespace fasttx {

struct LossSumParams {
  float* loss;            // sum partials[0 .. n) / total
  float* total;           // nullptr: not written
  const float* partials;  // n floats, 2 n where weighted
  int64_t n;
  bool weighted;  // total = sum partials[n .. 2 n), else `divisor`
  float divisor;
};

void loss_sum(const LossSumParams& params, Stream stream);

}  // namespace fasttx
