// What the int8 kernels for a CPU are given, and the table of them that each form (a set of instructions) fills in.
// kernels.cpp is compiled once for each form; module.cpp chooses one as it is loaded.
#pragma once
#include <cstdint>

namespace fasttx::cpu {

enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
enum class Activation : int { kNone = 0, kGelu = 1, kGeluTanh = 2 };

// A tensor of floats; data is null where there is none.
struct Floats {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  explicit operator bool() const { return data != nullptr; }
};

struct FloatsOut {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
};

// Rows of x, their integers and scales; scale is one number for all rows, or null: then each row has its own.
struct Quantize {
  int8_t* x_q;
  float* x_scale;
  Floats x;
  const float* scale;
  int64_t n_rows, n_cols, stride_xm;
};

struct AddLayerNormQuantize {
  FloatsOut out;
  int8_t* x_q;
  float* x_scale;
  Floats x, residual, weight, bias;
  const float* scale;
  int64_t n_rows, n_cols, stride_xm, stride_rm;
  float eps;
};

struct BiasGeluQuantize {
  int8_t* x_q;
  float* x_scale;
  Floats x, bias;
  const float* scale;
  int64_t n_rows, n_cols, stride_xm;
  bool tanh;
};

struct Int8Linear {
  FloatsOut out;  // contiguous
  const int8_t *x_q, *w_q;
  const float *x_scale, *w_scale;
  Floats bias, residual;
  int64_t n_rows, n_out, n_in, stride_xm, stride_wn, stride_rm;
  Activation activation;
};

// Each takes rows [first, end); int8_linear takes panels of columns [first, end) of a range of rows.
struct Kernels {
  void (*quantize)(const Quantize&, int64_t first, int64_t end);
  void (*add_layer_norm_quantize)(const AddLayerNormQuantize&, int64_t first, int64_t end);
  void (*bias_gelu_quantize)(const BiasGeluQuantize&, int64_t first, int64_t end);
  void (*int8_linear)(const Int8Linear&, int64_t first_row, int64_t end_row, int64_t first_panel, int64_t end_panel);
};

constexpr int kPanel = 64;  // columns of the result that are computed together

Kernels avx512_kernels();
Kernels avx2_kernels();
Kernels portable_kernels();

}  // namespace fasttx::cpu
