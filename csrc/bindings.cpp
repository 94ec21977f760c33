// The Python module fasttx._C: values by name -> params struct -> launcher. This file and those of bindings/ are the
// only ones that know pybind11.
//
// A launcher takes the stream as a number and the members of its struct by name: a tensor as (address, its number in
// DTYPES) or None, a struct as a dict. SIGNATURES says what each may be. The caller holds the tensors, has checked them
// and has made their device current.
#include "add_layer_norm_quantize/add_layer_norm_quantize.h"
#include "attention/attention.h"
#include "bias_gelu/bias_gelu.h"
#include "bias_gelu_quantize/bias_gelu_quantize.h"
#include "binary_cross_entropy/binary_cross_entropy.h"
#include "bindings/launcher.h"
#include "cross_entropy/cross_entropy.h"
#include "dropout_add_layer_norm/dropout_add_layer_norm.h"
#include "embedding_layer_norm/embedding_layer_norm.h"
#include "int8_linear/int8_linear.h"
#include "kl_div/kl_div.h"
#include "linear_cross_entropy/linear_cross_entropy.h"
#include "quantize_per_token/quantize_per_token.h"
#include "softmax/softmax.h"

#define F FTX_MEMBER

namespace bindings {
using namespace fasttx;

FTX_STRUCT(AttentionShape, F(batch), F(num_heads), F(num_heads_k), F(head_dim), F(head_dim_v), F(max_seqlen_q),
           F(max_seqlen_k), F(total_q), F(total_k), F(seqused_k), F(cu_seqlens_q), F(cu_seqlens_k), F(attn_bias),
           F(bias_dtype), F(bias_strides), F(window_left), F(window_right), F(softmax_scale), F(rng_state),
           F(threshold));
FTX_STRUCT(Dropout, F(rng_state), F(row_index), F(threshold), F(keep_scale));
FTX_STRUCT(EmbeddingTable, F(rows), F(ids), F(period), F(n_rows));
FTX_STRUCT(RepeatedWeight, F(values), F(period));
FTX_STRUCT(SoftmaxMask, F(data), F(dtype), F(sizes), F(strides));

void define_launchers(py::module_& m) {
  FTX_LAUNCHER(m, attention_fwd, AttentionFwdParams, F(out), F(softmax_lse), F(q), F(k), F(v), F(q_strides),
               F(k_strides), F(v_strides), F(dtype), F(form), F(shape));
  FTX_LAUNCHER(m, attention_bwd, AttentionBwdParams, F(dq), F(dk), F(dv), F(dbias), F(dbias_sizes), F(workspace),
               F(dout), F(q), F(k), F(v), F(out), F(softmax_lse), F(dout_strides), F(q_strides), F(k_strides),
               F(v_strides), F(dtype), F(shape));

  FTX_LAUNCHER(m, softmax_fwd, SoftmaxFwdParams, F(out), F(x), F(mask), F(rng_state), F(dtype), F(n_rows), F(n_cols),
               F(stride_xm), F(scale), F(threshold), F(keep_scale), F(log));
  FTX_LAUNCHER(m, softmax_bwd, SoftmaxBwdParams, F(dx), F(dout), F(saved), F(mask), F(rng_state), F(dtype), F(n_rows),
               F(n_cols), F(stride_dm), F(stride_sm), F(scale), F(threshold), F(keep_scale), F(log));

  FTX_LAUNCHER(m, dropout_add_layer_norm_fwd, DropoutAddLayerNormFwdParams, F(out), F(mean), F(rstd), F(x), F(residual),
               F(weight), F(bias), F(dropout), F(n_rows), F(n_cols), F(stride_xm), F(stride_rm), F(eps));
  FTX_LAUNCHER(m, dropout_add_layer_norm_bwd, DropoutAddLayerNormBwdParams, F(dx), F(dresidual), F(dweight), F(dbias),
               F(partial), F(dout), F(x), F(residual), F(weight), F(mean), F(rstd), F(dropout), F(n_rows), F(n_cols),
               F(stride_dm), F(stride_xm), F(stride_rm), F(programs));
  FTX_LAUNCHER(m, embedding_layer_norm_fwd, EmbeddingLayerNormFwdParams, F(out), F(mean), F(rstd), F(word), F(position),
               F(token_type), F(weight), F(bias), F(dropout), F(n_rows), F(n_cols), F(eps));
  FTX_LAUNCHER(m, embedding_layer_norm_bwd, EmbeddingLayerNormBwdParams, F(dz), F(dtoken_type), F(dweight), F(dbias),
               F(partial), F(dout), F(word), F(position), F(token_type), F(weight), F(mean), F(rstd), F(dropout),
               F(n_rows), F(n_cols), F(stride_dm), F(programs));
  FTX_LAUNCHER(m, bias_gelu_fwd, BiasGeluFwdParams, F(out), F(x), F(bias), F(dropout), F(dtype), F(n_rows), F(n_cols),
               F(stride_xm), F(tanh));
  FTX_LAUNCHER(m, bias_gelu_bwd, BiasGeluBwdParams, F(dx), F(dbias), F(partial), F(dout), F(x), F(bias), F(dropout),
               F(dtype), F(n_rows), F(n_cols), F(stride_dm), F(stride_xm), F(row_programs), F(tanh));

  FTX_LAUNCHER(m, quantize_per_token_fwd, QuantizePerTokenParams, F(x_q), F(x_scale), F(x), F(scale), F(dtype),
               F(n_rows), F(n_cols), F(stride_xm));
  FTX_LAUNCHER(m, add_layer_norm_quantize_fwd, AddLayerNormQuantizeParams, F(out), F(x_q), F(x_scale), F(x),
               F(residual), F(weight), F(bias), F(scale), F(n_rows), F(n_cols), F(stride_xm), F(stride_rm), F(eps));
  FTX_LAUNCHER(m, bias_gelu_quantize_fwd, BiasGeluQuantizeParams, F(x_q), F(x_scale), F(x), F(bias), F(scale), F(dtype),
               F(n_rows), F(n_cols), F(stride_xm), F(tanh));
  FTX_LAUNCHER(m, int8_linear_fwd, Int8LinearParams, F(out), F(x_q), F(w_q), F(x_scale), F(w_scale), F(bias),
               F(residual), F(n_rows), F(n_out), F(n_in), F(stride_xm), F(stride_wn), F(stride_rm), F(activation),
               F(tile));

  FTX_LAUNCHER(m, cross_entropy_fwd, CrossEntropyFwdParams, F(loss), F(lse), F(total_weight), F(partials), F(logits),
               F(labels), F(probabilities), F(weight), F(dtype), F(n_rows), F(n_cols), F(stride_xm), F(stride_tm),
               F(n_partials), F(ignore_index), F(smoothing), F(mean));
  FTX_LAUNCHER(m, cross_entropy_bwd, CrossEntropyBwdParams, F(dlogits), F(dloss), F(logits), F(labels),
               F(probabilities), F(weight), F(weight_sum), F(lse), F(total_weight), F(dtype), F(n_rows), F(n_cols),
               F(stride_dloss), F(stride_dxm), F(stride_xm), F(stride_tm), F(ignore_index), F(smoothing));
  FTX_LAUNCHER(m, linear_cross_entropy_fwd, LinearCrossEntropyFwdParams, F(loss), F(total_weight), F(row_losses),
               F(labels), F(weight), F(n_rows), F(n_cols), F(ignore_index), F(mean));
  FTX_LAUNCHER(m, binary_cross_entropy_fwd, BinaryCrossEntropyFwdParams, F(loss), F(partials), F(x), F(target),
               F(weight), F(pos_weight), F(dtype), F(n), F(n_partials), F(mean));
  FTX_LAUNCHER(m, binary_cross_entropy_bwd, BinaryCrossEntropyBwdParams, F(dx), F(dloss), F(x), F(target), F(weight),
               F(pos_weight), F(dtype), F(n), F(one_dloss), F(scale));
  FTX_LAUNCHER(m, kl_div_fwd, KlDivFwdParams, F(loss), F(partials), F(x), F(target), F(dtype), F(n), F(n_partials),
               F(log_target), F(divisor));
  FTX_LAUNCHER(m, kl_div_bwd, KlDivBwdParams, F(dx), F(dloss), F(target), F(dtype), F(n), F(log_target), F(one_dloss),
               F(scale));
}

}  // namespace bindings

PYBIND11_MODULE(FASTTX_MODULE, m) {
  m.attr("ARCHS") = FASTTX_ARCHS;  // what the kernels were compiled for, "80,90a,ptx120"
#ifdef CUDART_VERSION
  m.attr("RUNTIME") = CUDART_VERSION;  // a driver of an older major version cannot run it
#endif
  pybind11::dict dtypes;
  for (const auto& [name, dtype] : bindings::kDTypes) dtypes[name] = static_cast<int>(dtype);
  m.attr("DTYPES") = dtypes;
  m.attr("SIGNATURES") = pybind11::dict();
  bindings::define_launchers(m);
}
