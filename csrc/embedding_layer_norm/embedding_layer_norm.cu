// Launchers of embedding_layer_norm: which kernel, how many threads a row, and every instantiation.
#include "embedding_layer_norm.cuh"

#include "../common/checks.h"
#include "../common/column_sum.h"
#include "../common/dispatch.h"

namespace fasttx {
namespace {

const char* const kTooLong = "rows of at most 4096 columns fit the registers of a block";

// start(threads of a row, columns of a thread). Backward keeps four sums besides, so that a warp has the registers for
// rows of up to 512 columns only.
template <class Start>
void with_fwd_group(const char* name, int64_t n_cols, Start&& start) {
  const bool found = dispatch_at_least<512, 1024, 4096>(n_cols, [&](auto columns) {
    constexpr int kItems = columns == 1024 ? 32 : 16;
    start(std::integral_constant<int, columns / kItems>{}, std::integral_constant<int, kItems>{});
  });
  require(found, name, kTooLong);
}

template <class Start>
void with_bwd_group(const char* name, int64_t n_cols, Start&& start) {
  const bool found = dispatch_at_least<512, 1024, 4096>(n_cols, [&](auto columns) {
    constexpr int kItems = columns == 512 ? 16 : 8;
    start(std::integral_constant<int, columns / kItems>{}, std::integral_constant<int, kItems>{});
  });
  require(found, name, kTooLong);
}

void check_table(const char* name, const EmbeddingTable& table) {
  if (table.rows.data == nullptr) return;
  require_float(table.rows.dtype, name);
  require(table.ids.data != nullptr, name, "each table needs its ids");
  require(table.period > 0 && table.period <= INT32_MAX, name, "each table needs at least one id, below 2^31");
  require(table.n_rows > 0 && table.n_rows <= INT32_MAX, name, "tables have 1 .. 2^31 - 1 rows");
}

template <class Params>
void check(const char* name, const Params& p) {
  require(p.n_rows > 0 && p.n_rows <= INT32_MAX, name, "n_rows must lie in 1 .. 2^31 - 1");
  require(p.n_cols > 0, name, "n_cols must be positive");
  require(p.word.rows.data != nullptr && p.mean != nullptr && p.rstd != nullptr, name,
          "word, mean and rstd must be given");
  check_table(name, p.word);
  check_table(name, p.position);
  check_table(name, p.token_type);
  if (p.weight.data != nullptr) require_float(p.weight.dtype, name);
  check_dropout(name, p.dropout);
}

template <class Params>
DType dtype_of(const EmbeddingTable& table, const Params& p) {
  return table.rows.data == nullptr ? p.word.rows.dtype : table.rows.dtype;
}

}  // namespace

void embedding_layer_norm_fwd(const EmbeddingLayerNormFwdParams& p, Stream stream) {
  const char* name = "embedding_layer_norm_fwd";
  check(name, p);
  require(p.out.data != nullptr, name, "out must be given");
  if (p.bias.data != nullptr) require_float(p.bias.dtype, name);
  dispatch_floats({p.word.rows.dtype, dtype_of(p.position, p), dtype_of(p.token_type, p), p.out.dtype}, name,
                  [&](auto type) {
                    using T = typename decltype(type)::type;
                    with_fwd_group(name, p.n_cols, [&](auto group, auto items) {
                      launch_rows(name, p, embedding_layer_norm_fwd_kernel<T, group(), items()>, group, stream);
                    });
                  });
}

void embedding_layer_norm_bwd(const EmbeddingLayerNormBwdParams& p, Stream stream) {
  const char* name = "embedding_layer_norm_bwd";
  check(name, p);
  require(p.dout.data != nullptr, name, "dout must be given");
  ColumnSumParams sum{.out = {}, .partial = p.partial, .sums = 0, .programs = p.programs, .n_cols = p.n_cols};
  if (p.dweight.data != nullptr) sum.out[sum.sums++] = p.dweight;
  if (p.dbias.data != nullptr) sum.out[sum.sums++] = p.dbias;
  if (p.dtoken_type.data != nullptr) {
    require(p.token_type.rows.data != nullptr && p.token_type.n_rows <= kMaxTypes, name,
            "dtoken_type is summed for tables of at most 2 rows");
    const int64_t bytes = p.n_cols * (p.dtoken_type.dtype == DType::kFloat32 ? 4 : 2);
    for (int64_t type = 0; type < p.token_type.n_rows; type++) {
      sum.out[sum.sums++] = {static_cast<char*>(p.dtoken_type.data) + type * bytes, p.dtoken_type.dtype};
    }
  }
  if (sum.sums > 0) check_column_sum(name, sum);
  const DType dz = p.dz.data == nullptr ? p.dout.dtype : p.dz.dtype;
  dispatch_floats({p.word.rows.dtype, dtype_of(p.position, p), dtype_of(p.token_type, p), p.dout.dtype, dz}, name,
                  [&](auto type) {
                    using T = typename decltype(type)::type;
                    with_bwd_group(name, p.n_cols, [&](auto group, auto items) {
                      auto kernel = embedding_layer_norm_bwd_kernel<T, group(), items()>;
                      sum.sums == 0 ? launch_rows(name, p, kernel, group, stream)
                                    : launch_blocks(name, p, kernel, group, p.programs, stream);
                    });
                  });
  if (sum.sums > 0) column_sum(name, sum, stream);
}

}  // namespace fasttx
