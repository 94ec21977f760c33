// Launcher of add_layer_norm_quantize: how many threads a row, and every instantiation.
#include "add_layer_norm_quantize.cuh"

#include "../common/checks.h"
#include "../common/dispatch.h"

namespace fasttx {

void add_layer_norm_quantize_fwd(const AddLayerNormQuantizeParams& p, Stream stream) {
  const char* name = "add_layer_norm_quantize_fwd";
  require(p.n_rows > 0 && p.n_rows <= INT32_MAX, name, "n_rows must lie in 1 .. 2^31 - 1");
  require(p.n_cols > 0, name, "n_cols must be positive");
  require(p.out.data != nullptr && p.x_q != nullptr && p.x_scale != nullptr && p.x.data != nullptr, name,
          "out, x_q, x_scale and x must be given");
  for (const In& in : {p.weight, p.bias}) {
    require_floats(in, name, "weight and bias must be float32, float16 or bfloat16");
  }
  const DType residual = p.residual.data == nullptr ? p.x.dtype : p.residual.dtype;
  dispatch_floats({p.x.dtype, residual, p.out.dtype}, name, [&](auto type) {
    using T = typename decltype(type)::type;
    with_layer_norm_group(name, p.n_cols, [&](auto group, auto items) {
      launch_rows(name, p, add_layer_norm_quantize_kernel<T, group(), items()>, group, stream);
    });
  });
}

}  // namespace fasttx
