// Layer norms, embeddings, GELU and quantisation of rows.
#pragma once
#include "../add_layer_norm_quantize/add_layer_norm_quantize.h"
#include "../bias_gelu/bias_gelu.h"
#include "../bias_gelu_quantize/bias_gelu_quantize.h"
#include "../dropout_add_layer_norm/dropout_add_layer_norm.h"
#include "../embedding_layer_norm/embedding_layer_norm.h"
#include "../quantize_per_token/quantize_per_token.h"
#include "arguments.h"

namespace bindings {

inline void dropout_add_layer_norm_fwd(Address out, Address mean, Address rstd, Address x, Address residual,
                                       Address weight, Address bias, Address row_index, Address rng_state,
                                       int out_dtype, int x_dtype, int residual_dtype, int weight_dtype, int bias_dtype,
                                       bool row_index_is_long, int64_t n_rows, int64_t n_cols, int64_t stride_xm,
                                       int64_t stride_rm, int threshold, float keep_scale, float eps, Address stream) {
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

inline void dropout_add_layer_norm_bwd(Address dx, Address dresidual, Address dweight, Address dbias, Address partial,
                                       Address dout, Address x, Address residual, Address weight, Address mean,
                                       Address rstd, Address row_index, Address rng_state, int dout_dtype, int x_dtype,
                                       int residual_dtype, int weight_dtype, int bias_dtype, bool row_index_is_long,
                                       int64_t n_rows, int64_t n_cols, int64_t stride_dm, int64_t stride_xm,
                                       int64_t stride_rm, int64_t programs, int threshold, float keep_scale,
                                       Address stream) {
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

inline void bias_gelu_fwd(Address out, Address x, Address bias, Address row_index, Address rng_state, int dtype,
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

inline void bias_gelu_bwd(Address dx, Address dbias, Address partial, Address dout, Address x, Address bias,
                          Address row_index, Address rng_state, int dtype, int dout_dtype, int bias_dtype,
                          bool row_index_is_long, int64_t n_rows, int64_t n_cols, int64_t stride_dm, int64_t stride_xm,
                          int64_t row_programs, int threshold, float keep_scale, bool tanh, Address stream) {
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

inline fasttx::EmbeddingTable table_of(Address rows, int dtype, Address ids, bool ids_are_long, int64_t period,
                                       int64_t n_rows) {
  return {
      .rows = in(rows, dtype),
      .ids = {.data = pointer(ids), .is_long = ids_are_long},
      .period = period,
      .n_rows = n_rows,
  };
}

inline void embedding_layer_norm_fwd(Address out, Address mean, Address rstd, Address ids, Address word,
                                     Address position_ids, Address position, Address type_ids, Address token_type,
                                     Address weight, Address bias, Address row_index, Address rng_state, int out_dtype,
                                     int word_dtype, int position_dtype, int type_dtype, int weight_dtype,
                                     int bias_dtype, bool ids_is_long, bool position_ids_is_long, bool type_ids_is_long,
                                     bool row_index_is_long, int64_t n_rows, int64_t n_cols, int64_t n_words,
                                     int64_t position_period, int64_t n_positions, int64_t type_period, int64_t n_types,
                                     int threshold, float keep_scale, float eps, Address stream) {
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

inline void embedding_layer_norm_bwd(Address dz, Address dtoken_type, Address dweight, Address dbias, Address partial,
                                     Address dout, Address ids, Address word, Address position_ids, Address position,
                                     Address type_ids, Address token_type, Address weight, Address mean, Address rstd,
                                     Address row_index, Address rng_state, int dz_dtype, int dout_dtype, int word_dtype,
                                     int position_dtype, int type_dtype, int weight_dtype, int bias_dtype,
                                     bool ids_is_long, bool position_ids_is_long, bool type_ids_is_long,
                                     bool row_index_is_long, int64_t n_rows, int64_t n_cols, int64_t stride_dm,
                                     int64_t n_words, int64_t position_period, int64_t n_positions, int64_t type_period,
                                     int64_t n_types, int64_t programs, int threshold, float keep_scale,
                                     Address stream) {
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

inline void quantize_per_token_fwd(Address x_q, Address x_scale, Address x, Address scale, int dtype, int64_t n_rows,
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

inline void add_layer_norm_quantize_fwd(Address out, Address x_q, Address x_scale, Address x, Address residual,
                                        Address weight, Address bias, Address scale, int out_dtype, int x_dtype,
                                        int residual_dtype, int weight_dtype, int bias_dtype, int64_t n_rows,
                                        int64_t n_cols, int64_t stride_xm, int64_t stride_rm, float eps,
                                        Address stream) {
  const fasttx::AddLayerNormQuantizeParams params{
      .out = out_of(out, out_dtype),
      .x_q = pointer<int8_t>(x_q),
      .x_scale = pointer<float>(x_scale),
      .x = in(x, x_dtype),
      .residual = in(residual, residual_dtype),
      .weight = in(weight, weight_dtype),
      .bias = in(bias, bias_dtype),
      .scale = pointer<const float>(scale),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_xm = stride_xm,
      .stride_rm = stride_rm,
      .eps = eps,
  };
  py::gil_scoped_release released;
  fasttx::add_layer_norm_quantize_fwd(params, pointer(stream));
}

inline void bias_gelu_quantize_fwd(Address x_q, Address x_scale, Address x, Address bias, Address scale, int dtype,
                                   int bias_dtype, int64_t n_rows, int64_t n_cols, int64_t stride_xm, bool tanh,
                                   Address stream) {
  const fasttx::BiasGeluQuantizeParams params{
      .x_q = pointer<int8_t>(x_q),
      .x_scale = pointer<float>(x_scale),
      .x = pointer(x),
      .bias = in(bias, bias_dtype),
      .scale = pointer<const float>(scale),
      .dtype = static_cast<DType>(dtype),
      .n_rows = n_rows,
      .n_cols = n_cols,
      .stride_xm = stride_xm,
      .tanh = tanh,
  };
  py::gil_scoped_release released;
  fasttx::bias_gelu_quantize_fwd(params, pointer(stream));
}

inline void define_rows(py::module_& m) {
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
  m.def("add_layer_norm_quantize_fwd", add_layer_norm_quantize_fwd, py::kw_only(), "out"_a, "x_q"_a, "x_scale"_a, "x"_a,
        "residual"_a, "weight"_a, "bias"_a, "scale"_a, "out_dtype"_a, "x_dtype"_a, "residual_dtype"_a, "weight_dtype"_a,
        "bias_dtype"_a, "n_rows"_a, "n_cols"_a, "stride_xm"_a, "stride_rm"_a, "eps"_a, "stream"_a);
  m.def("bias_gelu_quantize_fwd", bias_gelu_quantize_fwd, py::kw_only(), "x_q"_a, "x_scale"_a, "x"_a, "bias"_a,
        "scale"_a, "dtype"_a, "bias_dtype"_a, "n_rows"_a, "n_cols"_a, "stride_xm"_a, "tanh"_a, "stream"_a);
}

}  // namespace bindings
