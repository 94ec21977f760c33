// What the kernels with a layer norm share: statistics of a row, the gradient of what was normalised, sums over rows.
#pragma once
#include "checks.h"
#include "dispatch.h"
#include "reductions.cuh"
#include "row_parts.cuh"

namespace fasttx {

// start(threads of a row, columns of a thread): a warp for the widths of most encoders, where a row costs no barrier.
template <class Start>
void with_layer_norm_group(const char* name, int64_t n_cols, Start&& start) {
  const bool found = dispatch_at_least<512, 1024, 2048, 8192>(n_cols, [&](auto columns) {
    constexpr int kItems = columns == 1024 ? 32 : 16;
    start(std::integral_constant<int, columns / kItems>{}, std::integral_constant<int, kItems>{});
  });
  require(found, name, "rows of at most 8192 columns fit the registers of a block");
}

// Blocks a multiprocessor must hold, from the threads whose registers fit: of the 65,536 it has, forward keeps one row
// of kItems beside what is loaded, backward four.
constexpr int layer_norm_blocks(int group, int items, bool backward) {
  return (items > 16 ? backward ? 384 : 512 : backward ? 512 : 768) / block_threads(group);
}

// z += the row of the residual at `at`, if there is one.
template <class T, int kGroup, int kItems>
FTX_DEVICE void add_residual(const RowPart<kGroup, kItems>& part, const In& residual, int64_t at, float (&z)[kItems]) {
  if (residual.data == nullptr) return;
  float row[kItems];
  part.template load<T>(residual, at, row);
#pragma unroll
  for (int i = 0; i < kItems; i++) z[i] += row[i];
}

// z becomes xhat; z is 0 beyond the end of the row. partials: 3 * kMaxWarps floats. Products that meet a sum are
// functions that no compiler contracts or does not: every kernel has the same bits, also where nobody reads mean.
// The sum of a row is rounded, hence the mean is off by some delta: with d = z - mean, delta = sum_j d_j / n, and
// var = sum_j d_j^2 / n - delta^2, xhat = (d - delta) rstd (the corrected two-pass algorithm of Chan, Golub and
// LeVeque, "Algorithms for computing the sample variance", 1983). So a mean far above the deviations cancels nothing.
template <int kGroup, int kItems>
FTX_DEVICE void normalise(const RowPart<kGroup, kItems>& part, float eps, float* partials, float (&z)[kItems],
                          float* mean, float* rstd) {
  const float inv_n = __fdividef(1.0f, static_cast<float>(part.n_cols));
  float sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kItems; i++) sum += z[i];
  const float first = __fmul_rn(group_reduce<Sum, kGroup>(sum, partials), inv_n);
  sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    z[i] = part.column(i) + i % kRowRun < part.n_cols ? z[i] - first : 0.0f;
    sum += z[i];
    squares = fmaf(z[i], z[i], squares);
  }
  const float delta = __fmul_rn(group_reduce<Sum, kGroup>(sum, partials + kMaxWarps), inv_n);
  const float mean_square = __fmul_rn(group_reduce<Sum, kGroup>(squares, partials + 2 * kMaxWarps), inv_n);
  float var = fmaf(-delta, delta, mean_square);
  var = var < 0.0f ? 0.0f : var;  // a constant row, by rounding; a NaN stays
  *mean = first + delta;
  *rstd = rsqrtf(var + eps);
#pragma unroll
  for (int i = 0; i < kItems; i++) z[i] = (z[i] - delta) * *rstd;
}

// out = xhat weight + bias, run by run: weight and bias come from L1, and need no registers of a whole row. Rounded
// twice in every kernel, as in normalise().
template <int kGroup, int kItems>
FTX_DEVICE void scale_and_shift(const RowPart<kGroup, kItems>& part, const In& weight, const In& bias,
                                float (&values)[kItems]) {
#pragma unroll
  for (int item = 0; item < kItems; item += kRowRun) {
    float w[kRowRun], b[kRowRun];
    if (weight.data != nullptr) {
      part.template load_run<Any>(weight, 0, item, w);
#pragma unroll
      for (int i = 0; i < kRowRun; i++) values[item + i] = __fmul_rn(values[item + i], w[i]);
    }
    if (bias.data != nullptr) {
      part.template load_run<Any>(bias, 0, item, b);
#pragma unroll
      for (int i = 0; i < kRowRun; i++) values[item + i] = __fadd_rn(values[item + i], b[i]);
    }
  }
}

// g, the gradient of xhat, becomes dz = rstd (g - sum_j g_j / n - xhat sum_j g_j xhat_j / n). g is 0 beyond the end of
// the row. partials: 2 * kMaxWarps floats, which another row may use before all threads have left this one.
template <int kGroup, int kItems>
FTX_DEVICE void gradient_of_z(const RowPart<kGroup, kItems>& part, float rstd, float* partials,
                              const float (&xhat)[kItems], float (&g)[kItems]) {
  const float inv_n = __fdividef(1.0f, static_cast<float>(part.n_cols));
  float c1 = 0.0f, c2 = 0.0f;
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    c1 += g[i] * xhat[i];
    c2 += g[i];
  }
  c1 = group_reduce<Sum, kGroup>(c1, partials) * inv_n;
  c2 = group_reduce<Sum, kGroup>(c2, partials + kMaxWarps) * inv_n;
#pragma unroll
  for (int i = 0; i < kItems; i++) g[i] = (g[i] - c2 - xhat[i] * c1) * rstd;
}

// Floats of shared memory that store_partial needs.
template <int kGroup, int kItems>
constexpr int kPartialFloats = RowPlace<kGroup>::kRowsPerBlock > 1 ? kGroup * kItems : 1;

// partial[0 .. n_cols) = the sum of what the groups of this block hold, added in their order. `shared` may be used
// again at once.
template <int kGroup, int kItems>
FTX_DEVICE void store_partial(const RowPart<kGroup, kItems>& part, float* partial, float* shared,
                              float (&sum)[kItems]) {
  constexpr int kGroups = RowPlace<kGroup>::kRowsPerBlock;
  const int group = threadIdx.x / kGroup;
#pragma unroll
  for (int turn = 0; turn < kGroups - 1; turn++) {
    if (group == turn) {
#pragma unroll
      for (int i = 0; i < kItems; i++) shared[i * kGroup + part.thread] = sum[i];
    }
    __syncthreads();  // shared: written by group `turn`, read by the next
    if (group == turn + 1) {
#pragma unroll
      for (int i = 0; i < kItems; i++) sum[i] += shared[i * kGroup + part.thread];
    }
  }
  if constexpr (kGroups > 1) __syncthreads();  // shared: read by the last group, written by the first of another sum
  if (group == kGroups - 1) part.template store<float>({partial, DType::kFloat32}, 0, sum);
}

}  // namespace fasttx
