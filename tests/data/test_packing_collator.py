"""PackingCollator: what it adds to a batch, what it drops from one, and what it refuses."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fasttx.data import PackingCollator

IDS = [[2, 7, 9, 3], [2, 3], [2, 8, 8, 8, 8, 3]]
LENGTHS = (4, 2, 6)


def features(**columns: list[Any]) -> list[dict[str, Any]]:
    return [{"input_ids": ids} | {name: values[i] for name, values in columns.items()} for i, ids in enumerate(IDS)]


def same(got: Mapping[str, Any], want: Mapping[str, Any]) -> bool:
    return got.keys() == want.keys() and all(
        torch.equal(got[k], v) and got[k].dtype == v.dtype if isinstance(v, Tensor) else got[k] == v
        for k, v in want.items()
    )


# -------------------------------------------------------------------------------------------- examples, padded here


def test_examples_are_padded_and_their_lengths_said() -> None:
    batch = PackingCollator(pad_token_id=1)(features(token_type_ids=[[0, 0, 1, 1], [0, 1], [0, 0, 0, 1, 1, 1]]))
    assert same(
        batch,
        {
            "input_ids": torch.tensor([[2, 7, 9, 3, 1, 1], [2, 3, 1, 1, 1, 1], IDS[2]]),
            "token_type_ids": torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6]),
            "seq_lens": LENGTHS,
        },
    )
    assert list(batch)[0] == "input_ids" and list(batch)[-1] == "seq_lens"
    assert type(batch["seq_lens"]) is tuple and all(type(length) is int for length in batch["seq_lens"])


def test_a_mask_of_the_examples_own_is_kept() -> None:
    batch = PackingCollator()(features(attention_mask=[[1, 1, 1, 0], [1, 1], [1] * 6]))
    assert batch["seq_lens"] == (3, 2, 6)
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("name", ["label", "labels", "label_ids"])
@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0, 2, 1], torch.tensor([0, 2, 1])),
        ([True, False, True], torch.tensor([1, 0, 1])),
        ([0.5, 2, 1], torch.tensor([0.5, 2.0, 1.0])),
        ([[5, 6, 7, 8], [5, 6], [1] * 6], torch.tensor([[5, 6, 7, 8] + [-100] * 2, [5, 6] + [-100] * 4, [1] * 6])),
        ([[0.0, 1.0]] * 3, torch.tensor([[0.0, 1.0]] * 3)),
        ([torch.tensor([5, 6, 7, 8], dtype=torch.uint8), np.array([5, 6], np.int32), [1] * 6], None),
    ],
    ids=["classes", "bools", "regression", "tokens", "several", "tokens of other types"],
)
def test_labels(name: str, values: list[Any], want: Tensor | None) -> None:
    if want is None:
        want = torch.tensor([[5, 6, 7, 8, -100, -100], [5, 6] + [-100] * 4, [1] * 6])
    got = PackingCollator()(features(**{name: values}))
    assert "labels" in got and not {"label", "label_ids"} & got.keys()
    assert torch.equal(got["labels"], want) and got["labels"].dtype == want.dtype


def test_several_labels_of_a_sequence_are_not_taken_for_labels_of_tokens() -> None:
    example = {"input_ids": [2, 7, 3], "labels": [0.0, 1.0, 1.0]}
    batch = PackingCollator(pad_to_multiple_of=8)([example])
    assert batch["input_ids"].shape == (1, 8) and batch["seq_lens"] == (3,)
    assert torch.equal(batch["labels"], torch.tensor([[0.0, 1.0, 1.0]]))


def test_the_padded_length_is_rounded_up() -> None:
    assert PackingCollator(pad_to_multiple_of=4)(features())["input_ids"].shape == (3, 8)
    assert PackingCollator(pad_to_multiple_of=3)(features())["input_ids"].shape == (3, 6)


def test_special_tokens_are_masked_at_padding() -> None:
    batch = PackingCollator()(features(special_tokens_mask=[[1, 0, 0, 1], [1, 1], [1, 0, 0, 0, 0, 1]]))
    assert batch["special_tokens_mask"][1].tolist() == [1] * 6


def test_an_empty_example_is_an_empty_row() -> None:
    batch = PackingCollator()([{"input_ids": []}, {"input_ids": [5]}])
    assert batch["seq_lens"] == (0, 1) and batch["input_ids"].dtype == torch.int64


# ------------------------------------------------------------------------------------------------------------- flat


def test_flat_is_one_row_of_real_tokens() -> None:
    tags = [[5, 6, 7, 8], [5, 6], [1, 2, 3, 4, 5, 6]]
    starts = torch.tensor([0, 4, 6, 12], dtype=torch.int32)
    batch = PackingCollator(form="flat", position_ids_start=2)(features(labels=tags))
    assert same(
        batch,
        {
            "input_ids": torch.tensor([sum(IDS, [])]),
            "labels": torch.tensor([sum(tags, [])]),
            "position_ids": torch.tensor([[2, 3, 4, 5, 2, 3, 2, 3, 4, 5, 6, 7]]),
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": 6,
            "max_length_k": 6,
            "label_counts": (12,),
        },
    )
    assert type(batch["max_length_q"]) is int


@pytest.mark.parametrize("side", ["right", "left"])
def test_flat_takes_padding_on_either_side_and_the_batch_s_own_positions(side: str) -> None:
    def collate(examples: list[Any]) -> dict[str, Tensor]:
        batch = PackingCollator()(examples)
        del batch["seq_lens"]
        batch["position_ids"] = torch.arange(6).repeat(3, 1) * 10
        return {name: t.flip(-1) for name, t in batch.items()} if side == "left" else batch

    batch = PackingCollator(collate, form="flat", position_ids_start=0)(features())
    order = IDS if side == "right" else [ids[::-1] for ids in IDS]
    assert batch["input_ids"].tolist() == [sum(order, [])]
    positions = [[10 * i for i in range(n)] for n in LENGTHS]
    assert batch["position_ids"].tolist() == [sum(positions if side == "right" else [p[::-1] for p in positions], [])]


def test_flat_and_padded_hold_the_same_tokens() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), start=st.integers(0, 3))
    def holds(lengths: list[int], start: int) -> None:
        examples = [{"input_ids": [10 * i + j for j in range(n)]} for i, n in enumerate(lengths)]
        padded, flat = PackingCollator()(examples), PackingCollator(form="flat", position_ids_start=start)(examples)
        assert padded["seq_lens"] == tuple(lengths)
        bounds = flat["cu_seq_lens_q"].tolist()
        assert [b - a for a, b in zip(bounds, bounds[1:])] == lengths and flat["max_length_q"] == max(lengths)
        for row, (a, b) in enumerate(zip(bounds, bounds[1:])):
            assert torch.equal(flat["input_ids"][0, a:b], padded["input_ids"][row, : b - a])
            assert flat["position_ids"][0, a:b].tolist() == list(range(start, start + b - a))

    holds()


# -------------------------------------------------------------------------------------------------- errors, and use


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(collator="pad"), "collator: got str"),
        (dict(form="packed"), "form: got 'packed'; allowed are 'padded', 'flat'"),
        (dict(form="flat"), "position_ids_start: got None; .* RoBERTa"),
        (dict(form="flat", position_ids_start=-1), "position_ids_start: got -1"),
        (dict(position_ids_start=0), "position_ids_start: got 0; .* unless form='flat'"),
        (dict(pad_to_multiple_of=0), "pad_to_multiple_of: got 0"),
        (dict(pad_to_multiple_of=8, collator=dict), "pad_to_multiple_of: got 8; .* collator"),
        (dict(pad_token_id=None), "pad_token_id: got None"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        PackingCollator(**options)


TAGS = [[5, 6, 7, 8], [5, 6], [1] * 6]


@pytest.mark.parametrize(
    ("examples", "named"),
    [
        ([], "features: got none"),
        (None, "features: got NoneType"),
        ([{"input_ids": []}, {"input_ids": []}], "input_ids: got no token in any of the 2 examples"),
        ([{"input_ids": [1, 2], "attention_mask": [1]}], r"attention_mask: got shape \(1,\) in example 0, .* 2 tokens"),
        (IDS, "features: got list as example 0"),
        ([{"input_ids": [1]}, {"tokens": [1]}], r"features: got a mapping of \['tokens'\] as example 1"),
        (
            [{"input_ids": [1], "a": 1}, {"input_ids": [1]}],
            "features: got 'a' in some examples and not in example 1; allowed is",
        ),
        (features(label=[1, 2, 3], labels=[1, 2, 3]), "features: got two columns for 'labels'.*'label'"),
        (features(text=["a", "b", "c"]), "text: got str in example 0; .* remove the column"),
        (features(extra=[None] * 3), "extra: got NoneType in example 0"),
        ([{"input_ids": [[1, 2]]}], r"input_ids: got torch.int64 of shape \(1, 2\) in example 0"),
        ([{"input_ids": [1.0, 2.0]}], "input_ids: got torch.float32"),
        (features(labels=[[1] * 4, [1] * 3, [1] * 6]), r"labels: got shape \(3,\) in example 1, .* 2 tokens"),
        (features(scores=[[0.5] * 4, [0.5] * 2, [0.5] * 6]), r"scores: got shape \(2,\) in example 1, .* 2 tokens"),
        (features(labels=[1, [1, 2], 3]), r"labels: got shape \(\) in example 0"),
        (
            features(attention_mask=[[0, 1, 1, 1], [1, 1], [1] * 6]),
            "attention_mask: got row 0, which is not padded on the right; allowed are ones",
        ),
        (
            features(attention_mask=[[1, 1, 1, 1], [1, 1], [1, 0] * 3]),
            "attention_mask: got row 2, which is not padded on the right",
        ),
    ],
)
def test_wrong_examples_are_named(examples: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        PackingCollator()(examples)


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (
            {"labels": [1, 2, 3]},
            r"labels: got shape \(3,\); allowed are .* \(3, 6\) here.* form='flat' .* use form='padded'",
        ),
        ({"labels": [[0.5, 1.5]] * 3}, r"labels: got shape \(3, 2\)"),
    ],
)
def test_flat_has_no_place_for_a_value_a_sequence(column: dict[str, list[Any]], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        PackingCollator(form="flat", position_ids_start=0)(features(**column))


@pytest.mark.parametrize(
    ("batch", "named"),
    [
        ({"input_ids": torch.ones(2, 3)}, r"collator: got a mapping of \['input_ids'\]"),
        ({"attention_mask": np.ones((2, 3))}, "collator: got an attention_mask of ndarray"),
        ({"attention_mask": torch.ones(3)}, r"collator: got an attention_mask of shape \(3,\) on cpu"),
        ({"attention_mask": torch.ones(3, 1, 3, 3)}, r"collator: got an attention_mask of shape \(3, 1, 3, 3\)"),
        ({"attention_mask": torch.ones(2, 3, device="meta")}, "collator: got an attention_mask .* on meta"),
        ({"attention_mask": torch.ones(2, 0)}, r"collator: got an attention_mask of shape \(2, 0\)"),
        ([torch.ones(2, 3)], "collator: got list from it; allowed are batches"),
    ],
    ids=["none", "numpy", "1-D", "4-D", "device", "empty", "list"],
)
def test_a_collator_without_a_mask_is_named(batch: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        PackingCollator(lambda examples: batch)(features())


def test_flat_refuses_what_is_no_tensor_and_a_batch_of_choices() -> None:
    collator = PackingCollator(lambda examples: examples[0], form="flat", position_ids_start=0)
    with pytest.raises(ValueError, match=r"^texts: got list; allowed are tensors .* form='flat'"):
        collator([{"attention_mask": torch.ones(1, 2), "texts": ["a"]}])
    with pytest.raises(
        ValueError, match=r"^attention_mask: got shape \(1, 2, 3\); allowed is \(batch, seqlen\) under form='flat'"
    ):
        collator([{"attention_mask": torch.ones(1, 2, 3)}])


def test_choices_have_a_length_each() -> None:
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]])
    batch = PackingCollator(lambda examples: {"attention_mask": mask})([0])
    assert batch["seq_lens"] == (2, 1, 3, 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", ["padded", "flat"])
def test_worker_processes(form: str, workers: int) -> None:
    collator = PackingCollator(form=form, position_ids_start=0 if form == "flat" else None)
    want = collator(features())
    (got,) = DataLoader(features(), batch_size=3, collate_fn=collator, num_workers=workers)  # type: ignore[arg-type]
    assert same(got, want)
    assert same(pickle.loads(pickle.dumps(collator))(features()), want)


@pytest.mark.parametrize("order", [1, -1])
def test_a_column_that_only_some_examples_have_is_an_error(order: int) -> None:
    examples = [{"input_ids": [1, 2]}, {"input_ids": [1, 2, 3], "labels": 1}][::order]
    with pytest.raises(ValueError, match=r"^features: got 'labels' in some examples and not in example \d; allowed is"):
        PackingCollator()(examples)
