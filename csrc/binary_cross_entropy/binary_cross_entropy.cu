// Launchers of binary cross-entropy: how many blocks, and every instantiation.
#include "binary_cross_entropy.cuh"

#include <algorithm>
#include <string>

#include "../common/dispatch.h"
#include "../common/loss_sum.h"

namespace fasttx {
namespace {

void check_weight(const char* name, const RepeatedWeight& weight, int64_t n) {
  require_floats(weight.values, name, "weights must be float32, float16 or bfloat16");
  const bool repeats = weight.period > 0 && weight.period < kMaxPeriod;
  require(weight.values.data == nullptr || repeats || weight.period == n, name,
          "the period of a weight must be below 2^20 or n");
}

template <class Params>
void check(const char* name, const Params& p) {
  // tiles are counted in 32 bits
  require(p.n > 0 && p.n <= static_cast<int64_t>(INT32_MAX) * kBceTile, name, "n must lie in 1 .. 2^42 - 2048");
  require(p.x != nullptr && p.target.data != nullptr, name, "x and target must be given");
  require_floats(p.target, name, "target must be float32, float16 or bfloat16");
  check_weight(name, p.weight, p.n);
  check_weight(name, p.pos_weight, p.n);
}

template <class Params>
void start(const char* name, const Params& p, void (*kernel)(Params), int64_t blocks, Stream stream) {
  launch(name, std::to_string(p.n) + " elements", kernel, dim3(blocks), dim3(kBceThreads), stream, p);
}

int64_t tiles_of(int64_t n) {
  return (n + kBceTile - 1) / kBceTile;
}

}  // namespace

void binary_cross_entropy_fwd(const BinaryCrossEntropyFwdParams& p, Stream stream) {
  const char* name = "binary_cross_entropy_fwd";
  check(name, p);
  require(p.loss != nullptr, name, "loss must be given");
  require(p.partials == nullptr || p.n_partials > 0, name, "partials must have an element");
  const int64_t blocks = p.partials == nullptr ? tiles_of(p.n) : std::min(tiles_of(p.n), p.n_partials);
  dispatch_float(p.dtype, name, [&](auto type) {
    start(name, p, binary_cross_entropy_fwd_kernel<typename decltype(type)::type>, blocks, stream);
  });
  if (p.partials == nullptr) return;
  loss_sum({.loss = p.loss,
            .total = nullptr,
            .partials = p.partials,
            .n = blocks,
            .weighted = false,
            .divisor = p.mean ? static_cast<float>(p.n) : 1.0f},
           stream);
}

void binary_cross_entropy_bwd(const BinaryCrossEntropyBwdParams& p, Stream stream) {
  const char* name = "binary_cross_entropy_bwd";
  check(name, p);
  require(p.dx != nullptr && p.dloss != nullptr, name, "dx and dloss must be given");
  dispatch_float(p.dtype, name, [&](auto type) {
    start(name, p, binary_cross_entropy_bwd_kernel<typename decltype(type)::type>, tiles_of(p.n), stream);
  });
}

}  // namespace fasttx
