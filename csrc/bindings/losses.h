// Cross-entropy, binary cross-entropy and the Kullback-Leibler divergence.
#pragma once
#include "../binary_cross_entropy/binary_cross_entropy.h"
#include "../cross_entropy/cross_entropy.h"
#include "../kl_div/kl_div.h"
#include "arguments.h"

namespace bindings {

inline void cross_entropy_fwd(Address loss, Address lse, Address total_weight, Address partials, Address logits,
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

inline void cross_entropy_bwd(Address dlogits, Address dloss, Address logits, Address labels, Address probabilities,
                              Address weight, Address weight_sum, Address lse, Address total_weight, int dtype,
                              int probabilities_dtype, int weight_dtype, int64_t n_rows, int64_t n_cols,
                              int64_t stride_dloss, int64_t stride_dxm, int64_t stride_xm, int64_t stride_tm,
                              int64_t ignore_index, float smoothing, Address stream) {
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

inline void binary_cross_entropy_fwd(Address loss, Address partials, Address x, Address target, Address weight,
                                     Address pos_weight, int dtype, int target_dtype, int weight_dtype,
                                     int pos_weight_dtype, int64_t n, int64_t n_partials, int64_t weight_period,
                                     int64_t pos_weight_period, bool mean, Address stream) {
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

inline void binary_cross_entropy_bwd(Address dx, Address dloss, Address x, Address target, Address weight,
                                     Address pos_weight, int dtype, int target_dtype, int weight_dtype,
                                     int pos_weight_dtype, int64_t n, int64_t weight_period, int64_t pos_weight_period,
                                     bool one_dloss, float scale, Address stream) {
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

inline void kl_div_fwd(Address loss, Address partials, Address x, Address target, int dtype, int target_dtype,
                       int64_t n, int64_t n_partials, bool log_target, float divisor, Address stream) {
  const fasttx::KlDivFwdParams params{
      .loss = pointer<float>(loss),
      .partials = pointer<float>(partials),
      .x = pointer(x),
      .target = in(target, target_dtype),
      .dtype = static_cast<DType>(dtype),
      .n = n,
      .n_partials = n_partials,
      .log_target = log_target,
      .divisor = divisor,
  };
  py::gil_scoped_release released;
  fasttx::kl_div_fwd(params, pointer(stream));
}

inline void kl_div_bwd(Address dx, Address dloss, Address target, int dtype, int target_dtype, int64_t n,
                       bool log_target, bool one_dloss, float scale, Address stream) {
  const fasttx::KlDivBwdParams params{
      .dx = pointer(dx),
      .dloss = pointer<const float>(dloss),
      .target = in(target, target_dtype),
      .dtype = static_cast<DType>(dtype),
      .n = n,
      .log_target = log_target,
      .one_dloss = one_dloss,
      .scale = scale,
  };
  py::gil_scoped_release released;
  fasttx::kl_div_bwd(params, pointer(stream));
}

inline void define_losses(py::module_& m) {
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
  m.def("kl_div_fwd", kl_div_fwd, py::kw_only(), "loss"_a, "partials"_a, "x"_a, "target"_a, "dtype"_a, "target_dtype"_a,
        "n"_a, "n_partials"_a, "log_target"_a, "divisor"_a, "stream"_a);
  m.def("kl_div_bwd", kl_div_bwd, py::kw_only(), "dx"_a, "dloss"_a, "target"_a, "dtype"_a, "target_dtype"_a, "n"_a,
        "log_target"_a, "one_dloss"_a, "scale"_a, "stream"_a);
}

}  // namespace bindings
