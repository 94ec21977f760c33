"""Which tests look at an op, at the emulator and at the wrappers of csrc/arch: arguments of pytest."""

from __future__ import annotations


def op_tests(op: str, *files: str) -> tuple[str, ...]:
    """The rows of an op in the table's own test, and its files."""
    return (*(f"tests/ops/{file}.py" for file in files), f"tests/test_ops.py::{ACCURATE}", "-k", op)


ACCURATE = "test_results_are_as_the_fake_says_and_accurate"
SOFTMAX = op_tests("softmax", "test_softmax", "test_softmax_unaligned")
CROSS_ENTROPY = op_tests("cross_entropy and not binary and not linear", "test_cross_entropy")
BINARY = op_tests("binary_cross_entropy", "test_binary_cross_entropy")
KL_DIV = op_tests("kl_div", "test_kl_div")
LINEAR = op_tests("linear_cross_entropy", "test_linear_cross_entropy")
ATTENTION = op_tests("attention", "test_attention_kernels", "test_attention_any_call")
BIAS_GRADIENT = ("tests/ops/test_attention_bias_gradient.py", "-k", "not any")
LAYER_NORM = op_tests("dropout_add_layer_norm", "test_dropout_add_layer_norm", "test_dropout_add_layer_norm_memory")
GELU = op_tests("bias_gelu", "test_bias_gelu", "test_bias_gelu_memory", "test_bias_gelu_accuracy")
EMBEDDING = op_tests("embedding_layer_norm", "test_embedding_layer_norm", "test_embedding_layer_norm_memory")
INT8 = op_tests("int8_linear", "test_int8_linear")
CPU = ("tests/ops/test_cpu_kernels.py",)
INT8_CUDA = ("tests/ops/test_int8_linear_cuda.py", "-m", "not slow")
QUANTIZE = op_tests("quantize_per_token", "test_quantize_per_token")
WRAPPERS = ("tests/emulator/test_instructions.py::test_each_wrapper_does_what_its_layout_says",)
FAULTS = ("tests/emulator/test_faults.py",)
INSTRUCTION_FAULTS = ("tests/emulator/test_instruction_faults.py::test_each_fault_is_reported_at_every_seed",)
WITHOUT_HOOKS = ("tests/emulator/test_instruction_faults.py::test_what_shows_without_hooks",)
NORM_QUANTIZE = op_tests("add_layer_norm_quantize", "test_add_layer_norm_quantize")
GELU_QUANTIZE = op_tests("bias_gelu_quantize", "test_bias_gelu_quantize")
RACES = ("tests/emulator/test_kernels.py", "-m", "not slow")
RACES_OF_ROWS = ("tests/emulator/test_rows.py", "-m", "not slow")
RACES_OF_INT8 = ("tests/emulator/test_int8_linear.py", "-m", "not slow")
HELD = ("tests/emulator/test_held_rows.py", "-m", "not slow", "-k", "not no_race")
CLUSTER_LOSSES = ("tests/emulator/test_cluster_losses.py", "-m", "not slow")
HELD_RACES = ("tests/emulator/test_held_rows.py", "-m", "not slow", "-k", "no_race")
ATTENTION_CUDA = ("tests/ops/test_attention_cuda_fwd.py",)
RACES_OF_ATTENTION = ("tests/emulator/test_attention.py", "-m", "not slow")
ATTENTION_SM90 = ("tests/ops/test_attention_cuda_sm90.py",)
RACES_OF_ATTENTION_SM90 = ("tests/emulator/test_attention_sm90.py",)
ATTENTION_BWD_CUDA = ("tests/emulator/test_attention_backward.py", "-m", "not slow", "-k", "not no_race")
RACES_OF_ATTENTION_BWD = ("tests/emulator/test_attention_backward.py", "-m", "not slow", "-k", "no_race")
