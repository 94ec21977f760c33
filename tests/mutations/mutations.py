"""One-line faults that the tests must notice: `make mutate` makes each in a copy of the sources and expects red.

A line that can be wrong without a test noticing is a line that nobody may trust. The list is short on purpose: one of
each kind of mistake that kernels suffer from (a barrier, a bound, a scale, a mask, an index), at least two a kernel
file, and the options that a patch has to pass on.
"""

from __future__ import annotations

from of_attention_bwd_cuda import ATTENTION_BWD
from of_attention_cuda import ATTENTION
from of_attention_sm90 import ATTENTION_FWD_SM90
from of_bound import BOUND
from of_cuda import CUDA
from of_emulator import ARCH, EMULATOR
from of_int8_cpu import INT8_CPU
from of_int8_cuda import INT8
from of_models import MODELS
from of_triton import TRITON

MUTATIONS = [
    *TRITON,
    *CUDA,
    *ATTENTION,
    *ATTENTION_FWD_SM90,
    *ATTENTION_BWD,
    *INT8,
    *INT8_CPU,
    *ARCH,
    *EMULATOR,
    *MODELS,
    *BOUND,
]
