// The Python module fasttx._C: numbers by name -> params struct, filled by name -> launcher. This file and those of
// bindings/ are the only ones that know pybind11.
//
// Tensors arrive as addresses, 0 for None; the caller holds the tensors, has checked them and has made their device
// current.
#include "bindings/losses.h"
#include "bindings/rows.h"
#include "bindings/softmax.h"

PYBIND11_MODULE(FASTTX_MODULE, m) {
  using fasttx::DType;
  m.attr("ARCHS") = FASTTX_ARCHS;  // what the kernels were compiled for, "80,90a,ptx120"
  pybind11::dict dtypes;
  dtypes["float32"] = static_cast<int>(DType::kFloat32);
  dtypes["float16"] = static_cast<int>(DType::kFloat16);
  dtypes["bfloat16"] = static_cast<int>(DType::kBFloat16);
  dtypes["float64"] = static_cast<int>(DType::kFloat64);
  dtypes["bool"] = static_cast<int>(DType::kBool);
  m.attr("DTYPES") = dtypes;
  bindings::define_softmax(m);
  bindings::define_rows(m);
  bindings::define_losses(m);
}
