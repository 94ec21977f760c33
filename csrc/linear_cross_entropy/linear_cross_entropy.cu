// Launcher of linear cross-entropy's last kernel.
#include "linear_cross_entropy.cuh"

#include <string>

#include "../common/checks.h"

namespace fasttx {

void linear_cross_entropy_fwd(const LinearCrossEntropyFwdParams& p, Stream stream) {
  const char* name = "linear_cross_entropy_fwd";
  require(p.n_rows > 0 && p.n_rows <= INT32_MAX, name, "n_rows must lie in 1 .. 2^31 - 1");
  require(p.n_cols > 0, name, "n_cols must be positive");
  require(p.loss != nullptr && p.total_weight != nullptr, name, "loss and total_weight must be given");
  require(p.row_losses != nullptr && p.labels != nullptr, name, "row_losses and labels must be given");
  require_floats(p.weight, name, "weight must be float32, float16 or bfloat16");
  launch(name, std::to_string(p.n_rows), linear_cross_entropy_fwd_kernel, dim3(1), dim3(kRowLossThreads), stream, p);
}

}  // namespace fasttx
