// One block adds the partial sums of a loss: thread i those of i, i + 512, ..., then the block; always in this order,
// so that the loss is bitwise deterministic.
#include "loss_sum.h"

#include <string>

#include "checks.h"
#include "reductions.cuh"

namespace fasttx {
namespace {
constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads) loss_sum_kernel(LossSumParams p) {
  FTX_SHARED(float, scratch, 2 * kMaxWarps);
  float loss = 0.0f, weight = 0.0f;
  for (int64_t i = threadIdx.x; i < p.n; i += kThreads) {
    loss += p.partials[i];
    if (p.weighted) weight += p.partials[p.n + i];
  }
  loss = group_reduce<Sum, kThreads>(loss, scratch);
  weight = group_reduce<Sum, kThreads>(weight, scratch + kMaxWarps);
  if (threadIdx.x != 0) return;
  const float total = p.weighted ? weight : p.divisor;
  *p.loss = loss / total;
  if (p.total != nullptr) *p.total = total;
}
}  // namespace

void loss_sum(const LossSumParams& p, Stream stream) {
  require(p.loss != nullptr && p.partials != nullptr && p.n > 0, "loss_sum", "loss and partials must be given");
  launch("loss_sum", std::to_string(p.n), loss_sum_kernel, dim3(1), dim3(kThreads), stream, p);
}

}  // namespace fasttx
