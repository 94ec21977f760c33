// Kernels of rows, one pass each: quantising, layer norm of a sum with quantising, GELU with quantising.
//
// Quantising is defined by float32 operations, each rounded once: absmax, 127 / absmax, absmax / 127, the product, and
// the nearest integer, half to even. absmax counts as 2^-118 at least. A row that holds a NaN or an infinity, or any
// row under a given scale without a finite inverse, gets the integers 0 and the scale NaN.
#pragma once
#include "gelu.h"
#include "room.h"

namespace fasttx::cpu {
namespace FTX_FORM {

constexpr int32_t kInfinity = 0x7f800000;

FTX_INLINE bool is_finite(float value) {
  int32_t in;
  std::memcpy(&in, &value, sizeof in);
  return (in & 0x7fffffff) < kInfinity;
}

// Largest magnitude so far, as bits: those of floats without a sign are in order, and a NaN is above infinity.
FTX_INLINE Ints with_magnitude(const Ints& so_far, const Vector& v) {
  return larger(so_far, bits(v) & all_ints(0x7fffffff));
}

struct RowScale {
  float inverse, scale;
  bool ok;
};

FTX_INLINE RowScale scale_of(int32_t absmax_bits, const float* given) {
  float absmax;
  std::memcpy(&absmax, &absmax_bits, sizeof absmax);
  RowScale found;
  found.ok = absmax_bits < kInfinity;
  if (given == nullptr) {
    const float counted = absmax < 0x1p-118f ? 0x1p-118f : absmax;
    found.inverse = 127.0f / counted;
    found.scale = counted / 127.0f;
  } else {
    found.inverse = 1.0f / *given;
    found.scale = *given;
    found.ok = found.ok && *given > 0.0f && is_finite(*given) && is_finite(found.inverse);
  }
  if (!found.ok) found.scale = __builtin_nanf("");
  return found;
}

FTX_INLINE Ints integers_of(const Vector& v, const Vector& inverse) {
  Vector scaled = v * inverse;
  scaled = if_less(scaled, all(-127.0f), all(-127.0f), scaled);
  scaled = if_less(all(127.0f), scaled, all(127.0f), scaled);
  return rounded(scaled);
}

// Calls f(index, count) for runs of sixteen, and for what is left.
template <typename F>
FTX_INLINE void for_runs(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
  if (i < n) f(i, static_cast<int>(n - i));
}

// The integers of a row whose float32 values are `at(index, count)`, and its scale.
template <typename At>
FTX_INLINE void write_row(int8_t* x_q, float* x_scale, int64_t n, int32_t absmax_bits, const float* given, At at) {
  const RowScale row = scale_of(absmax_bits, given);
  *x_scale = row.scale;
  if (!row.ok) {
    std::memset(x_q, 0, n);
    return;
  }
  const Vector inverse = all(row.inverse);
  for_runs(n, [&](int64_t i, int count) {
    const Ints q = integers_of(at(i, count), inverse);
    if (count == kLanes) {
      store_bytes(x_q + i, q);
    } else {
      store_bytes_part(x_q + i, q, count);
    }
  });
}

template <Dtype kDtype>
FTX_INLINE Vector load_run(const void* data, int64_t index, int count) {
  return count == kLanes ? load<kDtype>(data, index) : load_part<kDtype>(data, index, count);
}

template <Dtype kDtype>
void quantize_rows(const Quantize& p, int64_t first, int64_t end) {
  for (int64_t row = first; row < end; row++) {
    const int64_t start = row * p.stride_xm;
    Ints most = all_ints(0);
    for_runs(p.n_cols,
             [&](int64_t i, int count) { most = with_magnitude(most, load_run<kDtype>(p.x.data, start + i, count)); });
    write_row(p.x_q + row * p.n_cols, p.x_scale + row, p.n_cols, largest(most), p.scale,
              [&](int64_t i, int count) { return load_run<kDtype>(p.x.data, start + i, count); });
  }
}

void quantize(const Quantize& p, int64_t first, int64_t end) {
  if (p.x.dtype == Dtype::kFloat32) return quantize_rows<Dtype::kFloat32>(p, first, end);
  if (p.x.dtype == Dtype::kBFloat16) return quantize_rows<Dtype::kBFloat16>(p, first, end);
  return quantize_rows<Dtype::kFloat16>(p, first, end);
}

// A row of floats for the values between two passes, whole runs of sixteen.
FTX_INLINE float* room_for(int64_t n) {
  static thread_local Room room;
  return static_cast<float*>(room.of((n + kLanes - 1) / kLanes * kLanes * 4));
}

FTX_INLINE Vector first_of(const Vector& v, int count) {  // the others are 0
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof lane);
  for (int i = count; i < kLanes; i++) lane[i] = 0.0f;
  Vector out;
  std::memcpy(&out, lane, sizeof out);
  return out;
}

// Numbers are taken less the first of their row, so that a large mean costs no accuracy, and equal ones become 0.
void add_layer_norm_quantize(const AddLayerNormQuantize& p, int64_t first, int64_t end) {
  float* z = room_for(p.n_cols);
  const auto z_at = [&](int64_t i, int) { return load<Dtype::kFloat32>(z, i); };
  for (int64_t row = first; row < end; row++) {
    const auto given = [&](int64_t i, int count) {
      Vector v = load_any(p.x, row * p.stride_xm + i, count);
      return p.residual ? v + load_any(p.residual, row * p.stride_rm + i, count) : v;
    };
    float pivot[kLanes];
    store<Dtype::kFloat32>(pivot, 0, given(0, p.n_cols < kLanes ? static_cast<int>(p.n_cols) : kLanes));
    const Vector shift = all(pivot[0]);
    Vector total = all(0.0f);
    for_runs(p.n_cols, [&](int64_t i, int count) {
      Vector v = given(i, count) - shift;
      if (count < kLanes) v = first_of(v, count);
      store<Dtype::kFloat32>(z, i, v);
      total = total + v;
    });
    const Vector mean = all(sum(total) / static_cast<float>(p.n_cols));
    Vector squares = all(0.0f);
    for_runs(p.n_cols, [&](int64_t i, int count) {
      Vector centred = z_at(i, count) - mean;
      if (count < kLanes) centred = first_of(centred, count);
      squares = squares + centred * centred;
    });
    const Vector rstd = all(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(p.n_cols) + p.eps));
    Ints most = all_ints(0);
    for_runs(p.n_cols, [&](int64_t i, int count) {
      Vector v = (z_at(i, count) - mean) * rstd;
      if (p.weight) v = v * load_any(p.weight, i, count);
      if (p.bias) v = v + load_any(p.bias, i, count);
      store_any(p.out, row * p.n_cols + i, v, count);
      v = as_stored_any(p.out.dtype, v);
      if (count < kLanes) v = first_of(v, count);
      store<Dtype::kFloat32>(z, i, v);
      most = with_magnitude(most, v);
    });
    write_row(p.x_q + row * p.n_cols, p.x_scale + row, p.n_cols, largest(most), p.scale, z_at);
  }
}

void bias_gelu_quantize(const BiasGeluQuantize& p, int64_t first, int64_t end) {
  float* a = room_for(p.n_cols);
  for (int64_t row = first; row < end; row++) {
    Ints most = all_ints(0);
    for_runs(p.n_cols, [&](int64_t i, int count) {
      Vector v = load_any(p.x, row * p.stride_xm + i, count);
      if (p.bias) v = v + load_any(p.bias, i, count);
      Vectors<1> z = {v};
      p.tanh ? gelu_tanh<1>(z) : gelu_erf<1>(z);
      v = as_stored_any(p.x.dtype, z[0]);
      store<Dtype::kFloat32>(a, i, v);
      most = with_magnitude(most, v);
    });
    write_row(p.x_q + row * p.n_cols, p.x_scale + row, p.n_cols, largest(most), p.scale,
              [&](int64_t i, int) { return load<Dtype::kFloat32>(a, i); });
  }
}

}  // namespace FTX_FORM
}  // namespace fasttx::cpu
