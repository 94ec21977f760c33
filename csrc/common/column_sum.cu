// Launcher of the sum over blocks.
#include "column_sum.cuh"

#include <string>

#include "checks.h"

namespace fasttx {

void check_column_sum(const char* name, const ColumnSumParams& p) {
  require(p.partial != nullptr && p.programs > 0 && p.programs <= INT32_MAX, name,
          "partial and programs must be given where there are sums");
  for (int s = 0; s < p.sums; s++) require_float(p.out[s].dtype, name);
}

void column_sum(const char* name, const ColumnSumParams& p, Stream stream) {
  check_column_sum(name, p);
  const std::string shape =
      std::to_string(p.sums) + " x " + std::to_string(p.programs) + " x " + std::to_string(p.n_cols) + " partial sums";
  launch(name, shape, column_sum_kernel, dim3((p.n_cols + kSumColumns - 1) / kSumColumns, p.sums),
         dim3(kSumColumns * kSumWarps), stream, p);
}

}  // namespace fasttx
