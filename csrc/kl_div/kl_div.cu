// Launchers of the Kullback-Leibler divergence: how many blocks, and every instantiation.
#include "kl_div.cuh"

#include <algorithm>
#include <string>

#include "../common/dispatch.h"
#include "../common/loss_sum.h"

namespace fasttx {
namespace {

template <class Params>
void check(const char* name, const Params& p) {
  // blocks, a tile each, are counted in 31 bits
  require(p.n > 0 && p.n <= static_cast<int64_t>(INT32_MAX) * kKlTile, name, "n must lie in 1 .. 2^42 - 2048");
  require(p.target.data != nullptr, name, "target must be given");
  require_floats(p.target, name, "target must be float32, float16 or bfloat16");
}

template <class Params>
void start(const char* name, const Params& p, void (*kernel)(Params), int64_t blocks, Stream stream) {
  launch(name, std::to_string(p.n) + " elements", kernel, dim3(blocks), dim3(kKlThreads), stream, p);
}

int64_t tiles_of(int64_t n) {
  return (n + kKlTile - 1) / kKlTile;
}

}  // namespace

void kl_div_fwd(const KlDivFwdParams& p, Stream stream) {
  const char* name = "kl_div_fwd";
  check(name, p);
  require(p.x != nullptr && p.loss != nullptr, name, "x and loss must be given");
  require(p.partials == nullptr || p.n_partials > 0, name, "partials must have an element");
  const int64_t blocks = p.partials == nullptr ? tiles_of(p.n) : std::min(tiles_of(p.n), p.n_partials);
  dispatch_float(p.dtype, name, [&](auto type) {
    dispatch_bool(p.log_target, [&](auto log) {
      start(name, p, kl_div_fwd_kernel<typename decltype(type)::type, log.value>, blocks, stream);
    });
  });
  if (p.partials == nullptr) return;
  loss_sum(
      {.loss = p.loss, .total = nullptr, .partials = p.partials, .n = blocks, .weighted = false, .divisor = p.divisor},
      stream);
}

void kl_div_bwd(const KlDivBwdParams& p, Stream stream) {
  const char* name = "kl_div_bwd";
  check(name, p);
  require(p.dx != nullptr && p.dloss != nullptr, name, "dx and dloss must be given");
  dispatch_float(p.dtype, name, [&](auto type) {
    dispatch_bool(p.log_target, [&](auto log) {
      start(name, p, kl_div_bwd_kernel<typename decltype(type)::type, log.value>, tiles_of(p.n), stream);
    });
  });
}

}  // namespace fasttx
