"""Tests of many cases, or of minutes: which cases run each time. The others carry the mark `exhaustive`.

`make test`, `make test-slow` and `make aot` leave those out, `make test-exhaustive` runs them, and so does pytest by
itself. A number says of how many cases one runs each time; which one hangs on its name alone, spread by a hash, as
neighbours in a list are alike. Names in a tuple are the ids that run; none of them where it is empty.
"""

from __future__ import annotations

import zlib
from collections import Counter

import pytest

EACH_TIME: dict[str, int | tuple[str, ...]] = {
    # a shape or a dtype more of what others show
    "tests/functional/test_exporting.py::test_sizes_of_a_program_stay_symbols": 3,
    "tests/models/test_exporting.py::test_a_program_holds_nothing_of_ours_and_gives_the_same": 2,
    "tests/models/test_int8_same_bits.py::test_every_family": ("BERT-auto", "BERT-torch", "MPNet-auto"),
    "tests/models/test_losses.py::test_nothing_labelled": 3,
    "tests/ops/test_attention_bias_gradient.py::test_one_element_for_many_scores": 8,
    "tests/ops/test_attention_bias_gradient.py::test_packed": 6,
    "tests/ops/test_attention_kernels.py::test_masks": 2,
    "tests/ops/test_attention_lowest.py::test_the_lowest_number_hides_as_a_bool_mask_does": 3,
    "tests/ops/test_attention_uncovered.py::test_tokens_of_no_sequence_in_the_kernels": 3,
    "tests/ops/test_bias_gelu.py::test_widths_of_models": 4,
    "tests/ops/test_bias_gelu_quantize.py::test_the_bits_of_the_two_ops": 4,
    "tests/ops/test_dropout_add_layer_norm.py::test_lengths": 3,
    "tests/ops/test_embedding_layer_norm.py::test_lengths": 3,
    "tests/ops/test_softmax_unaligned.py::test_rows_that_begin_between_vectors": 2,
    "tests/emulator/test_attention_backward.py::test_gradient_of_a_bias": 3,
    "tests/ops/test_attention_bias_gradient.py::test_keys_that_are_not_used": 2,
    "tests/ops/test_cross_entropy.py::test_every_regime": 3,
    "tests/ops/test_cross_entropy.py::test_every_option": 3,
    "tests/ops/test_add_layer_norm_quantize.py::test_the_bits_of_the_two_ops": 3,
    "tests/ops/test_bias_gelu_accuracy.py::test_every_number": 2,
    "tests/test_ops.py::test_opcheck": 2,
    "tests/test_ops.py::test_results_are_as_the_fake_says_and_accurate": 2,
    "tests/models/test_mask_of_one_row.py::test_every_head": 3,
    # a process, a compiler or a training run for each case
    "tests/cuda/test_nvcc.py::test_ptxas_complains_of_nothing": 3,
    "tests/cuda/test_nvcc.py::test_no_spill_and_vector_accesses": 3,
    "tests/cuda/test_hot_loops.py::test_both_tensors_of_a_row_are_on_their_way_before_the_first_is_used": 2,
    "tests/models/test_convergence.py::test_loss_curves_coincide_and_faults_do_not": 2,
    "tests/test_examples.py::test_an_example_reaches_what_it_promises": 3,
    "tests/trust/test_first_use.py::test_what_becomes_of_a_kernel": 2,
    "tests/models/test_exporting.py::test_a_program_takes_batches_of_other_shapes": 2,
    "tests/models/test_other_lives.py::test_compiled_in_one_graph": ("DistilBertForMaskedLM",),
    "tests/models/test_training.py::test_compile_fullgraph_with_padding": (
        "BertForMaskedLM-auto",
        "BertForSequenceClassification-asked",
    ),
    # minutes, of which each part is tested by itself
    "tests/cuda/test_nvcc.py::test_the_module_loads_without_a_driver_and_launches_fail_with_the_reason": (),
    "tests/test_sass.py::test_one_op": (),
    "tests/trust/test_first_use.py::test_every_kernel_of_triton_in_the_interpreter": (),
    "tests/emulator/test_build.py::test_the_program_says_what_does_not_compile": (),
    # compiled for one device each time, for all of them before a release
    "tests/ahead_of_time/test_attention.py::test_listed_configurations": (
        "90-32",
        "90-64",
        "90-128",
        "80-64",
        "100-64",
    ),
    **{
        f"tests/ahead_of_time/{test}": ("90",)
        for test in (
            "test_bias_gelu.py::test_machine_code",
            "test_dropout_add_layer_norm.py::test_machine_code",
            "test_embedding_layer_norm.py::test_machine_code",
            "test_int8_linear.py::test_machine_code_of_add_layer_norm_quantize",
            "test_int8_linear.py::test_machine_code_of_bias_gelu_quantize",
            "test_int8_linear.py::test_machine_code_of_int8_linear",
            "test_softmax.py::test_machine_code",
        )
    },
}
"""Test -> of how many cases one runs each time, or the ids of those that do."""

collected: Counter[str] = Counter()
kept: Counter[str] = Counter()


def test_of(nodeid: str) -> tuple[str, str]:
    """(the test's name in the table, the id of the case, "" where there is none), of a class's tests too."""
    file, _, inside = nodeid.partition("::")
    name, _, case = inside.partition("[")
    return f"{file}::{name.rpartition('::')[2]}", case.removesuffix("]")


def mark(item: pytest.Item) -> None:
    """Marks a case that does not run each time."""
    test, case = test_of(item.nodeid)
    chosen = EACH_TIME.get(test)
    if chosen is None:
        return
    collected[test] += 1
    runs = case in chosen if isinstance(chosen, tuple) else zlib.crc32(item.nodeid.encode()) % chosen == 0
    if runs:
        kept[test] += 1
    else:
        item.add_marker(pytest.mark.exhaustive)
