// The kernels of the attention backward as attention_bwd starts them: each in a file of its own.
#pragma once
#include "../common/dispatch.h"
#include "attention_checks.h"
#include "bwd_config.h"

namespace fasttx {

struct BwdLaunch;

void attention_bwd_dq(const BwdLaunch& launch, Stream stream);
void attention_bwd_dbias(const BwdLaunch& launch, Stream stream);

// f(Type<T>, head_dim, dropout) of the instantiation for a call. Larger heads have one for calls with dropout and
// without.
template <class F>
void dispatch_attention_bwd(const AttentionBwdParams& p, const char* kernel, F&& f) {
  const int head_dim = p.shape.head_dim > p.shape.head_dim_v ? p.shape.head_dim : p.shape.head_dim_v;
  dispatch_half(p.dtype, kernel, [&](auto type) {
    const bool found = dispatch_at_least<32, 64, 128>(head_dim, [&](auto dim) {
      dispatch_bool(p.shape.rng_state != nullptr, [&](auto dropout) { f(type, dim, dropout); });
    });
    if (!found) f(type, std::integral_constant<int, kMaxHeadDim>{}, std::true_type{});
  });
}

}  // namespace fasttx
