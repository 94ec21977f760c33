// Launcher of quantize_per_token: how many threads a row, and every instantiation.
#include "quantize_per_token.cuh"

#include "../common/checks.h"
#include "../common/dispatch.h"

namespace fasttx {

void quantize_per_token_fwd(const QuantizePerTokenParams& p, Stream stream) {
  const char* name = "quantize_per_token_fwd";
  require(p.n_rows > 0 && p.n_rows <= INT32_MAX, name, "n_rows must lie in 1 .. 2^31 - 1");
  require(p.n_cols > 0, name, "n_cols must be positive");
  require(p.x_q != nullptr && p.x_scale != nullptr && p.x != nullptr, name, "x_q, x_scale and x must be given");
  dispatch_float(p.dtype, name, [&](auto type) {
    using T = typename decltype(type)::type;
    with_quantised_group(name, p.n_cols, [&](auto group, auto items) {
      launch_rows(name, p, quantize_per_token_kernel<T, group(), items()>, group, stream);
    });
  });
}

}  // namespace fasttx
