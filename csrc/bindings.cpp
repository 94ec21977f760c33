// The Python module fasttx._C: numbers by name -> params struct, filled by name -> launcher. No other file knows
// pybind11.
//
// Tensors arrive as addresses, 0 for None; the caller holds the tensors, has checked them and has made their device
// current.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "bias_gelu/bias_gelu.h"
#include "binary_cross_entropy/binary_cross_entropy.h"
#include "common/types.h"
#include "cross_entropy/cross_entropy.h"
#include "dropout_add_layer_norm/dropout_add_layer_norm.h"
#include "embedding_layer_norm/embedding_layer_norm.h"
#include "quantize_per_token/quantize_per_token.h"
#include "softmax/softmax.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {
using fasttx::DType;
using Address = uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

fasttx::In in(Address data, int dtype) {
  return {.data = pointer(data), .dtype = static_cast<DType>(dtype)};
}

fasttx::Out out_of(Address data, int dtype) {
  return {.data = pointer(data), .dtype = static_cast<DType>(dtype)};
}

fasttx::Dropout dropout_of(Address rng_state, Address row_index, bool row_index_is_long, int threshold,
                           float keep_scale) {
  return {
      .rng_state = pointer<const int64_t>(rng_state),
      .row_index = {.data = pointer(row_index), .is_long = row_index_is_long},
      .threshold = threshold,
      .keep_scale = keep_scale,
  };
}

fasttx::SoftmaxMask softmax_mask(Address data, int dtype, const std::array<int64_t, 3>& sizes,
                                 const std::array<int64_t, 5>& strides) {
  fasttx::SoftmaxMask mask{.data = pointer(data), .dtype = static_cast<DType>(dtype), .sizes = {}, .strides = {}};
  for (size_t i = 0; i < sizes.size(); i++) mask.sizes[i] = sizes[i];
  for (size_t i = 0; i < strides.size(); i++) mask.strides[i] = strides[i];
  return mask;
}

void softmax_fwd(Address out, Address x, Address mask, Address rng_state, int dtype, int mask_dtype,
                 const std::array<int64_t, 3>& mask_sizes, const std::array<int64_t, 5>& mask_strides, int64_t n_rows,
                 int64_t n_cols, int64_t stride_xm, float scale, int threshold, float keep_scale, bool log,
                 Address stream) {
  const fasttx::SoftmaxFwdParams params{
      .out = pointer(out),
      .x = pointer(x),
      .mask = softmax_mask(mask, mask_dtype, mask_sizes, mask_strides),
      .rng_state = pointer<const int64_t>(rng_state),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_xm = stride_xm,
      .scale = scale,
      .threshold = threshold,
      .keep_scale = keep_scale,
      .log = log,
  };
  py::gil_scoped_release released;
  fasttx::softmax_fwd(params, pointer(stream));
}

void softmax_bwd(Address dx, Address dout, Address saved, Address mask, Address rng_state, int dtype, int mask_dtype,
                 const std::array<int64_t, 3>& mask_sizes, const std::array<int64_t, 5>& mask_strides, int64_t n_rows,
                 int64_t n_cols, int64_t stride_dm, int64_t stride_sm, float scale, int threshold, float keep_scale,
                 bool log, Address stream) {
  const fasttx::SoftmaxBwdParams params{
      .dx = pointer(dx),
      .dout = pointer(dout),
      .saved = pointer(saved),
      .mask = softmax_mask(mask, mask_dtype, mask_sizes, mask_strides),
      .rng_state = pointer<const int64_t>(rng_state),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_dm = stride_dm,
      .stride_sm = stride_sm,
      .scale = scale,
      .threshold = threshold,
      .keep_scale = keep_scale,
      .log = log,
  };
  py::gil_scoped_release released;
  fasttx::softmax_bwd(params, pointer(stream));
}

void dropout_add_layer_norm_fwd(Address out, Address mean, Address rstd, Address x, Address residual, Address weight,
                                Address bias, Address row_index, Address rng_state, int out_dtype, int x_dtype,
                                int residual_dtype, int weight_dtype, int bias_dtype, bool row_index_is_long,
                                int64_t n_rows, int64_t n_cols, int64_t stride_xm, int64_t stride_rm, int threshold,
                                float keep_scale, float eps, Address stream) {
  const fasttx::DropoutAddLayerNormFwdParams params{
      .out = out_of(out, out_dtype),
      .mean = pointer<float>(mean),
      .rstd = pointer<float>(rstd),
      .x = in(x, x_dtype),
      .residual = in(residual, residual_dtype),
      .weight = in(weight, weight_dtype),
      .bias = in(bias, bias_dtype),
      .dropout = dropout_of(rng_state, row_index, row_index_is_long, threshold, keep_scale),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_xm = stride_xm,
      .stride_rm = stride_rm,
      .eps = eps,
  };
  py::gil_scoped_release released;
  fasttx::dropout_add_layer_norm_fwd(params, pointer(stream));
}

void dropout_add_layer_norm_bwd(Address dx, Address dresidual, Address dweight, Address dbias, Address partial,
                                Address dout, Address x, Address residual, Address weight, Address mean, Address rstd,
                                Address row_index, Address rng_state, int dout_dtype, int x_dtype, int residual_dtype,
                                int weight_dtype, int bias_dtype, bool row_index_is_long, int64_t n_rows,
                                int64_t n_cols, int64_t stride_dm, int64_t stride_xm, int64_t stride_rm,
                                int64_t programs, int threshold, float keep_scale, Address stream) {
  const fasttx::DropoutAddLayerNormBwdParams params{
      .dx = out_of(dx, x_dtype),
      .dresidual = out_of(dresidual, residual_dtype),
      .dweight = out_of(dweight, weight_dtype),
      .dbias = out_of(dbias, bias_dtype),
      .partial = pointer<float>(partial),
      .dout = in(dout, dout_dtype),
      .x = in(x, x_dtype),
      .residual = in(residual, residual_dtype),
      .weight = in(weight, weight_dtype),
      .mean = pointer<const float>(mean),
      .rstd = pointer<const float>(rstd),
      .dropout = dropout_of(rng_state, row_index, row_index_is_long, threshold, keep_scale),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_dm = stride_dm,
      .stride_xm = stride_xm,
      .stride_rm = stride_rm,
      .programs = programs,
  };
  py::gil_scoped_release released;
  fasttx::dropout_add_layer_norm_bwd(params, pointer(stream));
}

void bias_gelu_fwd(Address out, Address x, Address bias, Address row_index, Address rng_state, int dtype,
                   int bias_dtype, bool row_index_is_long, int64_t n_rows, int64_t n_cols, int64_t stride_xm,
                   int threshold, float keep_scale, bool tanh, Address stream) {
  const fasttx::BiasGeluFwdParams params{
      .out = pointer(out),
      .x = pointer(x),
      .bias = in(bias, bias_dtype),
      .dropout = dropout_of(rng_state, row_index, row_index_is_long, threshold, keep_scale),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_xm = stride_xm,
      .tanh = tanh,
  };
  py::gil_scoped_release released;
  fasttx::bias_gelu_fwd(params, pointer(stream));
}

void bias_gelu_bwd(Address dx, Address dbias, Address partial, Address dout, Address x, Address bias, Address row_index,
                   Address rng_state, int dtype, int dout_dtype, int bias_dtype, bool row_index_is_long, int64_t n_rows,
                   int64_t n_cols, int64_t stride_dm, int64_t stride_xm, int64_t row_programs, int threshold,
                   float keep_scale, bool tanh, Address stream) {
  const fasttx::BiasGeluBwdParams params{
      .dx = pointer(dx),
      .dbias = out_of(dbias, bias_dtype),
      .partial = pointer<float>(partial),
      .dout = in(dout, dout_dtype),
      .x = pointer(x),
      .bias = in(bias, bias_dtype),
      .dropout = dropout_of(rng_state, row_index, row_index_is_long, threshold, keep_scale),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_dm = stride_dm,
      .stride_xm = stride_xm,
      .row_programs = row_programs,
      .tanh = tanh,
  };
  py::gil_scoped_release released;
  fasttx::bias_gelu_bwd(params, pointer(stream));
}

fasttx::EmbeddingTable table_of(Address rows, int dtype, Address ids, bool ids_are_long, int64_t period,
                                int64_t n_rows) {
  return {
      .rows = in(rows, dtype),
      .ids = {.data = pointer(ids), .is_long = ids_are_long},
      .period = period,
      .n_rows = n_rows,
  };
}

void embedding_layer_norm_fwd(Address out, Address mean, Address rstd, Address ids, Address word, Address position_ids,
                              Address position, Address type_ids, Address token_type, Address weight, Address bias,
                              Address row_index, Address rng_state, int out_dtype, int word_dtype, int position_dtype,
                              int type_dtype, int weight_dtype, int bias_dtype, bool ids_is_long,
                              bool position_ids_is_long, bool type_ids_is_long, bool row_index_is_long, int64_t n_rows,
                              int64_t n_cols, int64_t n_words, int64_t position_period, int64_t n_positions,
                              int64_t type_period, int64_t n_types, int threshold, float keep_scale, float eps,
                              Address stream) {
  const fasttx::EmbeddingLayerNormFwdParams params{
      .out = out_of(out, out_dtype),
      .mean = pointer<float>(mean),
      .rstd = pointer<float>(rstd),
      .word = table_of(word, word_dtype, ids, ids_is_long, n_rows, n_words),
      .position = table_of(position, position_dtype, position_ids, position_ids_is_long, position_period, n_positions),
      .token_type = table_of(token_type, type_dtype, type_ids, type_ids_is_long, type_period, n_types),
      .weight = in(weight, weight_dtype),
      .bias = in(bias, bias_dtype),
      .dropout = dropout_of(rng_state, row_index, row_index_is_long, threshold, keep_scale),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .eps = eps,
  };
  py::gil_scoped_release released;
  fasttx::embedding_layer_norm_fwd(params, pointer(stream));
}

void embedding_layer_norm_bwd(Address dz, Address dtoken_type, Address dweight, Address dbias, Address partial,
                              Address dout, Address ids, Address word, Address position_ids, Address position,
                              Address type_ids, Address token_type, Address weight, Address mean, Address rstd,
                              Address row_index, Address rng_state, int dz_dtype, int dout_dtype, int word_dtype,
                              int position_dtype, int type_dtype, int weight_dtype, int bias_dtype, bool ids_is_long,
                              bool position_ids_is_long, bool type_ids_is_long, bool row_index_is_long, int64_t n_rows,
                              int64_t n_cols, int64_t stride_dm, int64_t n_words, int64_t position_period,
                              int64_t n_positions, int64_t type_period, int64_t n_types, int64_t programs,
                              int threshold, float keep_scale, Address stream) {
  const fasttx::EmbeddingLayerNormBwdParams params{
      .dz = out_of(dz, dz_dtype),
      .dtoken_type = out_of(dtoken_type, type_dtype),
      .dweight = out_of(dweight, weight_dtype),
      .dbias = out_of(dbias, bias_dtype),
      .partial = pointer<float>(partial),
      .dout = in(dout, dout_dtype),
      .word = table_of(word, word_dtype, ids, ids_is_long, n_rows, n_words),
      .position = table_of(position, position_dtype, position_ids, position_ids_is_long, position_period, n_positions),
      .token_type = table_of(token_type, type_dtype, type_ids, type_ids_is_long, type_period, n_types),
      .weight = in(weight, weight_dtype),
      .mean = pointer<const float>(mean),
      .rstd = pointer<const float>(rstd),
      .dropout = dropout_of(rng_state, row_index, row_index_is_long, threshold, keep_scale),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_dm = stride_dm,
      .programs = programs,
  };
  py::gil_scoped_release released;
  fasttx::embedding_layer_norm_bwd(params, pointer(stream));
}

void quantize_per_token_fwd(Address x_q, Address x_scale, Address x, Address scale, int dtype, int64_t n_rows,
                            int64_t n_cols, int64_t stride_xm, Address stream) {
  const fasttx::QuantizePerTokenParams params{
      .x_q = pointer<int8_t>(x_q),
      .x_scale = pointer<float>(x_scale),
      .x = pointer(x),
      .scale = pointer<const float>(scale),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_xm = stride_xm,
  };
  py::gil_scoped_release released;
  fasttx::quantize_per_token_fwd(params, pointer(stream));
}

void cross_entropy_fwd(Address loss, Address lse, Address total_weight, Address partials, Address logits,
                       Address labels, Address probabilities, Address weight, int dtype, int probabilities_dtype,
                       int weight_dtype, int64_t n_rows, int64_t n_cols, int64_t stride_xm, int64_t stride_tm,
                       int64_t n_partials, int64_t ignore_index, float smoothing, bool mean, Address stream) {
  const fasttx::CrossEntropyFwdParams params{
      .loss = pointer<float>(loss),
      .lse = pointer<float>(lse),
      .total_weight = pointer<float>(total_weight),
      .partials = pointer<float>(partials),
      .logits = pointer(logits),
      .labels = pointer<const int64_t>(labels),
      .probabilities = in(probabilities, probabilities_dtype),
      .weight = in(weight, weight_dtype),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_xm = stride_xm,
      .stride_tm = stride_tm,
      .n_partials = n_partials,
      .ignore_index = ignore_index,
      .smoothing = smoothing,
      .mean = mean,
  };
  py::gil_scoped_release released;
  fasttx::cross_entropy_fwd(params, pointer(stream));
}

void cross_entropy_bwd(Address dlogits, Address dloss, Address logits, Address labels, Address probabilities,
                       Address weight, Address weight_sum, Address lse, Address total_weight, int dtype,
                       int probabilities_dtype, int weight_dtype, int64_t n_rows, int64_t n_cols, int64_t stride_dloss,
                       int64_t stride_dxm, int64_t stride_xm, int64_t stride_tm, int64_t ignore_index, float smoothing,
                       Address stream) {
  const fasttx::CrossEntropyBwdParams params{
      .dlogits = pointer(dlogits),
      .dloss = pointer<const float>(dloss),
      .logits = pointer(logits),
      .labels = pointer<const int64_t>(labels),
      .probabilities = in(probabilities, probabilities_dtype),
      .weight = in(weight, weight_dtype),
      .weight_sum = pointer<const float>(weight_sum),
      .lse = pointer<const float>(lse),
      .total_weight = pointer<const float>(total_weight),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_dloss = stride_dloss,
      .stride_dxm = stride_dxm,
      .stride_xm = stride_xm,
      .stride_tm = stride_tm,
      .ignore_index = ignore_index,
      .smoothing = smoothing,
  };
  py::gil_scoped_release released;
  fasttx::cross_entropy_bwd(params, pointer(stream));
}

void binary_cross_entropy_fwd(Address loss, Address partials, Address x, Address target, Address weight,
                              Address pos_weight, int dtype, int target_dtype, int weight_dtype, int pos_weight_dtype,
                              int64_t n, int64_t n_partials, int64_t weight_period, int64_t pos_weight_period,
                              bool mean, Address stream) {
  const fasttx::BinaryCrossEntropyFwdParams params{
      .loss = pointer<float>(loss),
      .partials = pointer<float>(partials),
      .x = pointer(x),
      .target = in(target, target_dtype),
      .weight = {.values = in(weight, weight_dtype), .period = weight_period},
      .pos_weight = {.values = in(pos_weight, pos_weight_dtype), .period = pos_weight_period},
      .dtype = static_cast<DType>(dtype),
      .n = n,
      .n_partials = n_partials,
      .mean = mean,
  };
  py::gil_scoped_release released;
  fasttx::binary_cross_entropy_fwd(params, pointer(stream));
}

void binary_cross_entropy_bwd(Address dx, Address dloss, Address x, Address target, Address weight, Address pos_weight,
                              int dtype, int target_dtype, int weight_dtype, int pos_weight_dtype, int64_t n,
                              int64_t weight_period, int64_t pos_weight_period, bool one_dloss, float scale,
                              Address stream) {
  const fasttx::BinaryCrossEntropyBwdParams params{
      .dx = pointer(dx),
      .dloss = pointer<const float>(dloss),
      .x = pointer(x),
      .target = in(target, target_dtype),
      .weight = {.values = in(weight, weight_dtype), .period = weight_period},
      .pos_weight = {.values = in(pos_weight, pos_weight_dtype), .period = pos_weight_period},
      .dtype = static_cast<DType>(dtype),
      .n = n,
      .one_dloss = one_dloss,
      .scale = scale,
  };
  py::gil_scoped_release released;
  fasttx::binary_cross_entropy_bwd(params, pointer(stream));
}
}  // namespace

PYBIND11_MODULE(FASTTX_MODULE, m) {
  m.attr("ARCHS") = FASTTX_ARCHS;  // what the kernels were compiled for, "80,90a,ptx120"
  py::dict dtypes;
  dtypes["float32"] = static_cast<int>(DType::kFloat32);
  dtypes["float16"] = static_cast<int>(DType::kFloat16);
  dtypes["bfloat16"] = static_cast<int>(DType::kBFloat16);
  dtypes["float64"] = static_cast<int>(DType::kFloat64);
  dtypes["bool"] = static_cast<int>(DType::kBool);
  m.attr("DTYPES") = dtypes;
  m.def("softmax_fwd", softmax_fwd, py::kw_only(), "out"_a, "x"_a, "mask"_a, "rng_state"_a, "dtype"_a, "mask_dtype"_a,
        "mask_sizes"_a, "mask_strides"_a, "n_rows"_a, "n_cols"_a, "stride_xm"_a, "scale"_a, "threshold"_a,
        "keep_scale"_a, "log"_a, "stream"_a);
  m.def("softmax_bwd", softmax_bwd, py::kw_only(), "dx"_a, "dout"_a, "saved"_a, "mask"_a, "rng_state"_a, "dtype"_a,
        "mask_dtype"_a, "mask_sizes"_a, "mask_strides"_a, "n_rows"_a, "n_cols"_a, "stride_dm"_a, "stride_sm"_a,
        "scale"_a, "threshold"_a, "keep_scale"_a, "log"_a, "stream"_a);
  m.def("dropout_add_layer_norm_fwd", dropout_add_layer_norm_fwd, py::kw_only(), "out"_a, "mean"_a, "rstd"_a, "x"_a,
        "residual"_a, "weight"_a, "bias"_a, "row_index"_a, "rng_state"_a, "out_dtype"_a, "x_dtype"_a,
        "residual_dtype"_a, "weight_dtype"_a, "bias_dtype"_a, "row_index_is_long"_a, "n_rows"_a, "n_cols"_a,
        "stride_xm"_a, "stride_rm"_a, "threshold"_a, "keep_scale"_a, "eps"_a, "stream"_a);
  m.def("dropout_add_layer_norm_bwd", dropout_add_layer_norm_bwd, py::kw_only(), "dx"_a, "dresidual"_a, "dweight"_a,
        "dbias"_a, "partial"_a, "dout"_a, "x"_a, "residual"_a, "weight"_a, "mean"_a, "rstd"_a, "row_index"_a,
        "rng_state"_a, "dout_dtype"_a, "x_dtype"_a, "residual_dtype"_a, "weight_dtype"_a, "bias_dtype"_a,
        "row_index_is_long"_a, "n_rows"_a, "n_cols"_a, "stride_dm"_a, "stride_xm"_a, "stride_rm"_a, "programs"_a,
        "threshold"_a, "keep_scale"_a, "stream"_a);
  m.def("bias_gelu_fwd", bias_gelu_fwd, py::kw_only(), "out"_a, "x"_a, "bias"_a, "row_index"_a, "rng_state"_a,
        "dtype"_a, "bias_dtype"_a, "row_index_is_long"_a, "n_rows"_a, "n_cols"_a, "stride_xm"_a, "threshold"_a,
        "keep_scale"_a, "tanh"_a, "stream"_a);
  m.def("bias_gelu_bwd", bias_gelu_bwd, py::kw_only(), "dx"_a, "dbias"_a, "partial"_a, "dout"_a, "x"_a, "bias"_a,
        "row_index"_a, "rng_state"_a, "dtype"_a, "dout_dtype"_a, "bias_dtype"_a, "row_index_is_long"_a, "n_rows"_a,
        "n_cols"_a, "stride_dm"_a, "stride_xm"_a, "row_programs"_a, "threshold"_a, "keep_scale"_a, "tanh"_a,
        "stream"_a);
  m.def("embedding_layer_norm_fwd", embedding_layer_norm_fwd, py::kw_only(), "out"_a, "mean"_a, "rstd"_a, "ids"_a,
        "word"_a, "position_ids"_a, "position"_a, "type_ids"_a, "token_type"_a, "weight"_a, "bias"_a, "row_index"_a,
        "rng_state"_a, "out_dtype"_a, "word_dtype"_a, "position_dtype"_a, "type_dtype"_a, "weight_dtype"_a,
        "bias_dtype"_a, "ids_is_long"_a, "position_ids_is_long"_a, "type_ids_is_long"_a, "row_index_is_long"_a,
        "n_rows"_a, "n_cols"_a, "n_words"_a, "position_period"_a, "n_positions"_a, "type_period"_a, "n_types"_a,
        "threshold"_a, "keep_scale"_a, "eps"_a, "stream"_a);
  m.def("embedding_layer_norm_bwd", embedding_layer_norm_bwd, py::kw_only(), "dz"_a, "dtoken_type"_a, "dweight"_a,
        "dbias"_a, "partial"_a, "dout"_a, "ids"_a, "word"_a, "position_ids"_a, "position"_a, "type_ids"_a,
        "token_type"_a, "weight"_a, "mean"_a, "rstd"_a, "row_index"_a, "rng_state"_a, "dz_dtype"_a, "dout_dtype"_a,
        "word_dtype"_a, "position_dtype"_a, "type_dtype"_a, "weight_dtype"_a, "bias_dtype"_a, "ids_is_long"_a,
        "position_ids_is_long"_a, "type_ids_is_long"_a, "row_index_is_long"_a, "n_rows"_a, "n_cols"_a, "stride_dm"_a,
        "n_words"_a, "position_period"_a, "n_positions"_a, "type_period"_a, "n_types"_a, "programs"_a, "threshold"_a,
        "keep_scale"_a, "stream"_a);
  m.def("quantize_per_token_fwd", quantize_per_token_fwd, py::kw_only(), "x_q"_a, "x_scale"_a, "x"_a, "scale"_a,
        "dtype"_a, "n_rows"_a, "n_cols"_a, "stride_xm"_a, "stream"_a);
  m.def("cross_entropy_fwd", cross_entropy_fwd, py::kw_only(), "loss"_a, "lse"_a, "total_weight"_a, "partials"_a,
        "logits"_a, "labels"_a, "probabilities"_a, "weight"_a, "dtype"_a, "probabilities_dtype"_a, "weight_dtype"_a,
        "n_rows"_a, "n_cols"_a, "stride_xm"_a, "stride_tm"_a, "n_partials"_a, "ignore_index"_a, "smoothing"_a, "mean"_a,
        "stream"_a);
  m.def("cross_entropy_bwd", cross_entropy_bwd, py::kw_only(), "dlogits"_a, "dloss"_a, "logits"_a, "labels"_a,
        "probabilities"_a, "weight"_a, "weight_sum"_a, "lse"_a, "total_weight"_a, "dtype"_a, "probabilities_dtype"_a,
        "weight_dtype"_a, "n_rows"_a, "n_cols"_a, "stride_dloss"_a, "stride_dxm"_a, "stride_xm"_a, "stride_tm"_a,
        "ignore_index"_a, "smoothing"_a, "stream"_a);
  m.def("binary_cross_entropy_fwd", binary_cross_entropy_fwd, py::kw_only(), "loss"_a, "partials"_a, "x"_a, "target"_a,
        "weight"_a, "pos_weight"_a, "dtype"_a, "target_dtype"_a, "weight_dtype"_a, "pos_weight_dtype"_a, "n"_a,
        "n_partials"_a, "weight_period"_a, "pos_weight_period"_a, "mean"_a, "stream"_a);
  m.def("binary_cross_entropy_bwd", binary_cross_entropy_bwd, py::kw_only(), "dx"_a, "dloss"_a, "x"_a, "target"_a,
        "weight"_a, "pos_weight"_a, "dtype"_a, "target_dtype"_a, "weight_dtype"_a, "pos_weight_dtype"_a, "n"_a,
        "weight_period"_a, "pos_weight_period"_a, "one_dloss"_a, "scale"_a, "stream"_a);
}
