"""Regimes of ops and forms: every call lies in one, and what is measured lies in the one that it stands for."""

from __future__ import annotations

import bisect
import itertools

import pytest
import torch
from torch import Tensor

from fasttx.ops import OPS
from fasttx.ops.cases import Draw, cases
from fasttx.ops.dispatch import as_tuple
from fasttx.ops.forms import FORMS
from fasttx.ops.regimes import Axis, regimes_of

META = torch.device("meta")


class Shapes(Draw):
    """Draws nothing: the calls of regimes are large."""

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=META)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)


def holds(axis: Axis, name: str, number: int) -> bool:
    """Whether a number lies in a class, from its two ends."""
    at = axis.names.index(name)
    return (at == 0 or number >= axis.bounds[at - 1]) and (at == len(axis.bounds) or number < axis.bounds[at])


AXES = {name: regimes_of(name).axes for name in OPS} | {name: form.axes for name, form in FORMS.items()}


@pytest.mark.parametrize("name", AXES)
def test_classes_ascend_and_hold_their_typical_numbers(name: str) -> None:
    for axis in AXES[name]:
        assert len(axis.names) == len(set(axis.names)) == len(axis.bounds) + 1 == len(axis.typical)
        assert list(axis.bounds) == sorted(set(axis.bounds))
        for typical, each in zip(axis.typical, axis.names):
            assert axis.name_of(typical) == each and "/" not in each
        for bound in axis.bounds:
            for number in (bound - 1, bound):
                assert axis.name_of(number) == axis.names[bisect.bisect_right(axis.bounds, number)]


@pytest.mark.parametrize("name", OPS)
def test_each_case_of_an_op_lies_in_exactly_one_regime(name: str) -> None:
    """By the ends of the classes; forward and backward agree."""
    op, regimes = OPS[name], regimes_of(name)
    for _, arguments in cases(op, torch.device("cpu"), torch.float32):
        tensors = op.fwd.key_tensors(arguments)
        numbers = regimes.numbers(*tensors)
        found = [
            ", ".join(names)
            for names in itertools.product(*(axis.names for axis in regimes.axes))
            if all(holds(axis, each, number) for axis, each, number in zip(regimes.axes, names, numbers, strict=True))
        ]
        assert found == [regimes.name_of(*tensors)] and found[0] in regimes.all()
        if op.bwd is not None:
            outputs = as_tuple(op.fwd.torch(*arguments))
            backward = op.backward_arguments(arguments, outputs, torch.ones_like(outputs[0]))
            assert regimes.name_of(*op.bwd.key_tensors(backward)) == found[0]


@pytest.mark.parametrize("name", OPS)
def test_what_is_measured_is_a_call_of_its_regime(name: str) -> None:
    op, regimes = OPS[name], regimes_of(name)
    for regime in regimes.all():
        full, few = (regimes.calls(Shapes(META, torch.bfloat16), regime, few) for few in (False, True))
        assert [example for example, _ in full] == [example for example, _ in few]
        for example, arguments in full:
            assert regimes.name_of(*op.fwd.key_tensors(arguments)) == regime
            at = op.fwd.argument_names().index("dropout_p") if "dropout_p" in op.fwd.argument_names() else None
            assert (example == "dropout") == (at is not None and arguments[at] > 0.0)
            elements = sum(x.numel() for x in arguments if isinstance(x, Tensor))
            assert elements <= 1 << 29, "a gigabyte of bfloat16"
        few_elements = sum(x.numel() for x in few[0][1] if isinstance(x, Tensor))
        assert few_elements < 1 << 28 and (name == "linear_cross_entropy" or few_elements < 1 << 25)


@pytest.mark.parametrize("name", OPS)
def test_calls_with_few_rows_are_right_calls(name: str) -> None:
    """They pass the op's own check; the composition runs them (those of a vocabulary's width are left to `tune`)."""
    op, regimes = OPS[name], regimes_of(name)
    for regime in list(regimes.all())[:2]:
        for _, arguments in regimes.calls(Draw(torch.device("cpu"), torch.float32), regime, True):
            op.fwd.check(*arguments)


def test_names_tell_ops_and_forms_apart() -> None:
    assert not set(OPS) & set(FORMS) and all(name.count(":") == 1 and "/" not in name for name in FORMS)
    for form in FORMS.values():
        assert len(set(form.options)) == len(form.options) >= 2 and next(iter(form.all())) == ", ".join(form.typical)
    for name in OPS:
        assert next(iter(regimes_of(name).all())) == ", ".join(regimes_of(name).typical)
