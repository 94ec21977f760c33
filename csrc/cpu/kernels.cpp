// The kernels of one form: compiled with -DFTX_FORM=avx512, avx2 or portable and the options of its instructions
// (buildsystem/cpu_build.py).
#include "kernels.h"

#include "int8_linear.h"
#include "rows.h"

#define FTX_JOINED(a, b) a##b
#define FTX_TABLE(form) FTX_JOINED(form, _kernels)

namespace fasttx::cpu {

Kernels FTX_TABLE(FTX_FORM)() {
  return {FTX_FORM::quantize, FTX_FORM::add_layer_norm_quantize, FTX_FORM::bias_gelu_quantize, FTX_FORM::int8_linear};
}

}  // namespace fasttx::cpu
