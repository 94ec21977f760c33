// Launchers of the cross-entropy op: how many threads a row, how many blocks, and every instantiation.
#include "cross_entropy.cuh"

#include <algorithm>

#include "../common/cluster_size.h"
#include "../common/dispatch.h"
#include "../common/loss_sum.h"

namespace fasttx {
namespace {

constexpr int kLongGroup = 256;
constexpr int kTilesPerBlock = 4;  // of a long row's backward: what a block reads of its row once is small beside them
constexpr unsigned kMaxGridY = 65535;

// Threads of a row, by its length: one holds rows of 16 columns, a warp takes at most two tiles.
template <class Start>
void with_group(int64_t n_cols, Start&& start) {
  if (n_cols <= kLossItems) return start(std::integral_constant<int, 1>{});
  if (n_cols <= 1024) return start(std::integral_constant<int, 32>{});
  start(std::integral_constant<int, kLongGroup>{});
}

template <class Params>
void check(const char* name, const Params& p) {
  require(p.n_rows > 0 && p.n_rows <= INT32_MAX, name, "n_rows must lie in 1 .. 2^31 - 1");
  require(p.n_cols > 0 && p.n_cols <= INT32_MAX, name, "n_cols must lie in 1 .. 2^31 - 1");
  require((p.labels != nullptr) != (p.probabilities.data != nullptr), name, "give labels or probabilities");
  require(p.logits != nullptr && p.lse != nullptr && p.total_weight != nullptr, name,
          "logits, lse and total_weight must be given");
  require_floats(p.probabilities, name, "probabilities must be float32, float16 or bfloat16");
  require_floats(p.weight, name, "weight must be float32, float16 or bfloat16");
}

}  // namespace

void cross_entropy_fwd(const CrossEntropyFwdParams& p, Stream stream) {
  const char* name = "cross_entropy_fwd";
  check(name, p);
  require(p.loss != nullptr, name, "loss must be given");
  require(p.partials == nullptr || p.n_partials >= 2 * p.n_rows, name, "partials must have two floats a row");
  int64_t sums = 0;  // partial ones, of the loss and of the weights
  dispatch_float(p.dtype, name, [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_bool(p.labels == nullptr || p.smoothing > 0.0f, [&](auto with_sum) {
      with_group(p.n_cols, [&](auto group) {
        constexpr int kRows = RowPlace<group()>::kRowsPerBlock;
        sums = (p.n_rows + kRows - 1) / kRows;
        if constexpr (group() == kLongGroup) {
          auto shared = cross_entropy_fwd_kernel<T, kLongGroup, with_sum(), true>;
          const unsigned cluster =
              p.n_cols <= kLongGroup * kLossItems
                  ? 1
                  : cluster_of_few_rows(1, p.n_rows, p.n_cols, kLongGroup * kLossItems, device_of(shared));
          if (cluster > 1) {
            launch_blocks(name, p, shared, kLongGroup, p.n_rows * cluster, stream, 1, 0, cluster);
            return;
          }
        }
        launch_rows(name, p, cross_entropy_fwd_kernel<T, group(), with_sum(), false>, group, stream);
      });
    });
  });
  if (p.partials == nullptr) return;
  loss_sum({.loss = p.loss,
            .total = p.total_weight,
            .partials = p.partials,
            .n = sums,
            .weighted = p.mean && p.labels != nullptr,
            .divisor = p.mean ? static_cast<float>(p.n_rows) : 1.0f},
           stream);
}

void cross_entropy_bwd(const CrossEntropyBwdParams& p, Stream stream) {
  const char* name = "cross_entropy_bwd";
  check(name, p);
  require(p.dlogits != nullptr && p.dloss != nullptr, name, "dlogits and dloss must be given");
  require(p.labels == nullptr || p.weight.data == nullptr || p.smoothing == 0.0f || p.weight_sum != nullptr, name,
          "weight_sum must be given");
  dispatch_float(p.dtype, name, [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_bool(p.labels == nullptr, [&](auto probabilities) {
      with_group(p.n_cols, [&](auto group) {
        unsigned parts = 1;  // with probabilities each would need the sum of the whole row
        if constexpr (group() == kLongGroup && !probabilities()) {
          const int64_t columns = kTilesPerBlock * group() * kLossItems;
          parts = std::min<int64_t>((p.n_cols + columns - 1) / columns, kMaxGridY);
        }
        launch_rows(name, p, cross_entropy_bwd_kernel<T, group(), probabilities()>, group, stream, parts);
      });
    });
  });
}

}  // namespace fasttx
