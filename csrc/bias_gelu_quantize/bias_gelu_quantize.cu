// Launcher of bias_gelu_quantize: how many threads a row, and every instantiation.
#include "bias_gelu_quantize.cuh"

#include "../common/checks.h"
#include "../common/dispatch.h"

namespace fasttx {

void bias_gelu_quantize_fwd(const BiasGeluQuantizeParams& p, Stream stream) {
  const char* name = "bias_gelu_quantize_fwd";
  require(p.n_rows > 0 && p.n_rows <= INT32_MAX, name, "n_rows must lie in 1 .. 2^31 - 1");
  require(p.n_cols > 0, name, "n_cols must be positive");
  require(p.x_q != nullptr && p.x_scale != nullptr && p.x != nullptr, name, "x_q, x_scale and x must be given");
  require_floats(p.bias, name, "bias must be float32, float16 or bfloat16");
  dispatch_float(p.dtype, name, [&](auto type) {
    using T = typename decltype(type)::type;
    with_quantised_group(name, p.n_cols, [&](auto group, auto items) {
      launch_rows(name, p, bias_gelu_quantize_kernel<T, group(), items()>, group, stream);
    });
  });
}

}  // namespace fasttx
