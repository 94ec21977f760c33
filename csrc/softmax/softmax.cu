// Launchers of the softmax op: which kernel, how many threads a row, and every instantiation.
#include "softmax.cuh"

#include "../common/checks.h"
#include "../common/dispatch.h"

namespace fasttx {
namespace {

// Threads of a row, by its length: 16 columns each, so that the row is held in registers; 512 for what is longer.
template <class Start>
void with_group(int64_t n_cols, Start&& start) {
  const bool resident = dispatch_at_least<32 * kSoftmaxItems, 128 * kSoftmaxItems, 512 * kSoftmaxItems>(
      n_cols, [&](auto columns) { start(std::integral_constant<int, columns / kSoftmaxItems>{}, std::false_type{}); });
  if (!resident) start(std::integral_constant<int, 512>{}, std::true_type{});
}

template <class Params>
void check(const char* name, const Params& p) {
  require(p.n_rows > 0 && p.n_rows <= INT32_MAX, name, "n_rows must lie in 1 .. 2^31 - 1");
  require(p.n_cols > 0 && p.n_cols <= INT32_MAX, name, "n_cols must lie in 1 .. 2^31 - 1");
  require(p.rng_state == nullptr || !p.log, name, "log and dropout exclude each other");
  require(p.threshold >= 0 && p.threshold <= 256, name, "threshold must lie in 0 .. 256");
  for (int64_t size : p.mask.sizes) require(size > 0, name, "mask sizes must be positive");
}

}  // namespace

void softmax_fwd(const SoftmaxFwdParams& p, Stream stream) {
  check("softmax_fwd", p);
  require(p.out != nullptr && p.x != nullptr, "softmax_fwd", "out and x must be given");
  dispatch_float(p.dtype, "softmax_fwd", [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_bool(p.rng_state != nullptr, [&](auto dropout) {
      with_group(p.n_cols, [&](auto group, auto stream_row) {
        launch_rows("softmax_fwd", p, softmax_fwd_kernel<T, group(), stream_row(), dropout()>, group, stream);
      });
    });
  });
}

void softmax_bwd(const SoftmaxBwdParams& p, Stream stream) {
  check("softmax_bwd", p);
  require(p.dx != nullptr && p.dout != nullptr && p.saved != nullptr, "softmax_bwd",
          "dx, dout and saved must be given");
  dispatch_float(p.dtype, "softmax_bwd", [&](auto type) {
    using T = typename decltype(type)::type;
    with_group(p.n_cols, [&](auto group, auto stream_row) {
      auto kernel = p.rng_state != nullptr ? softmax_dropout_bwd_kernel<T, group(), stream_row()>
                                           : softmax_bwd_kernel<T, group(), stream_row()>;
      launch_rows("softmax_bwd", p, kernel, group, stream);
    });
  });
}

}  // namespace fasttx
