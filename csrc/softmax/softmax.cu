// Launchers of the softmax op: which kernel, how many threads a row, and every instantiation.
#include "softmax.cuh"

#include "../common/checks.h"
#include "../common/dispatch.h"
#include "held_launch.h"

namespace fasttx {
namespace {

// A kernel of the row's length: 16 columns a thread, so that the row stays in registers; 512 threads for what is
// longer, held by a cluster where it can be. kernel_of(integral_constant of the threads, of the form); `column_bytes`
// are those of all tensors that are read.
template <class Params, class KernelOf>
void start(const char* name, const Params& p, int column_bytes, Stream stream, KernelOf&& kernel_of) {
  constexpr int kItems = kSoftmaxItems;
  const bool resident = dispatch_at_least<32 * kItems, 64 * kItems, 128 * kItems, 256 * kItems, 512 * kItems>(
      p.n_cols, [&](auto columns) {
        std::integral_constant<int, columns / kItems> group;
        launch_rows(name, p, kernel_of(group, std::integral_constant<Form, Form::kResident>{}), group, stream);
      });
  if (resident) return;
  std::integral_constant<int, kSoftmaxLongGroup> group;
  const HeldLaunch held = held_launch(p.n_rows, p.n_cols, column_bytes,
                                      device_of(kernel_of(group, std::integral_constant<Form, Form::kHeld>{})));
  if (held.cluster == 0) {
    launch_rows(name, p, kernel_of(group, std::integral_constant<Form, Form::kStreamed>{}), group, stream);
    return;
  }
  const int64_t blocks = p.n_rows * held.cluster;
  require(blocks <= INT32_MAX, name, "n_rows times the blocks of a row must lie below 2^31");
  launch_blocks(name, p, kernel_of(group, std::integral_constant<Form, Form::kHeld>{}), group, blocks, stream, 1,
                held.shared_bytes, held.cluster);
}

template <class Params>
void check(const char* name, const Params& p) {
  require(p.n_rows > 0 && p.n_rows <= INT32_MAX, name, "n_rows must lie in 1 .. 2^31 - 1");
  require(p.n_cols > 0 && p.n_cols <= INT32_MAX, name, "n_cols must lie in 1 .. 2^31 - 1");
  require(p.rng_state == nullptr || !p.log, name, "log and dropout exclude each other");
  require(p.threshold >= 0 && p.threshold <= 256, name, "threshold must lie in 0 .. 256");
  for (int64_t size : p.mask.sizes) require(size > 0, name, "mask sizes must be positive");
  require(p.mask.data == nullptr || p.mask.dtype <= DType::kBool, name, "mask must be bool or of a float type");
}

}  // namespace

void softmax_fwd(const SoftmaxFwdParams& p, Stream stream) {
  check("softmax_fwd", p);
  require(p.out != nullptr && p.x != nullptr, "softmax_fwd", "out and x must be given");
  dispatch_float(p.dtype, "softmax_fwd", [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_bool(p.rng_state != nullptr, [&](auto dropout) {
      start("softmax_fwd", p, sizeof(T), stream,
            [&](auto group, auto form) { return softmax_fwd_kernel<T, group(), form(), dropout()>; });
    });
  });
}

void softmax_bwd(const SoftmaxBwdParams& p, Stream stream) {
  check("softmax_bwd", p);
  require(p.dx != nullptr && p.dout != nullptr && p.saved != nullptr, "softmax_bwd",
          "dx, dout and saved must be given");
  dispatch_float(p.dtype, "softmax_bwd", [&](auto type) {
    using T = typename decltype(type)::type;
    start("softmax_bwd", p, 2 * sizeof(T), stream, [&](auto group, auto form) {
      return p.rng_state != nullptr ? softmax_dropout_bwd_kernel<T, group(), form()>
                                    : softmax_bwd_kernel<T, group(), form()>;
    });
  });
}

}  // namespace fasttx
