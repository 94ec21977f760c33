// The second kernel of a sum over rows: from what each block kept to the result.
#pragma once
#include "types.h"

namespace fasttx {

constexpr int kMaxSums = 4;

struct ColumnSumParams {
  Out out[kMaxSums];     // (n_cols,) each
  const float* partial;  // (sums, programs, n_cols)
  int sums;
  int64_t programs, n_cols;
};

// Launchers check before their own kernel runs.
void check_column_sum(const char* name, const ColumnSumParams& params);
void column_sum(const char* name, const ColumnSumParams& params, Stream stream);

}  // namespace fasttx
