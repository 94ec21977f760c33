"""fasttx.data beside transformers: its collators, patched models, Trainer and accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from torch.utils.data import DataLoader, IterableDataset

import fasttx
from fasttx.data import LengthBucketSampler, PackingCollator

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on a mat and slept".split()
TEXTS = ["the cat sat on a mat and slept", "the cat", "a mat and a cat sat", "slept"]
LENGTHS = (10, 4, 8, 3)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})


def examples(tokenizer: Any, kind: str) -> list[dict[str, Any]]:
    encoded = [dict(tokenizer(text)) for text in TEXTS]
    for row, example in enumerate(encoded):
        if kind == "classes":
            example["labels"] = row % 2
        if kind == "tokens":
            example["labels"] = [i % 3 for i in example["input_ids"]]
    return encoded


def collators(tokenizer: Any) -> dict[str, tuple[Any, list[dict[str, Any]]]]:
    of_words = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4, pad_to_multiple_of=8)
    return {
        "padding": (transformers.DataCollatorWithPadding(tokenizer), examples(tokenizer, "classes")),
        "tokens": (transformers.DataCollatorForTokenClassification(tokenizer), examples(tokenizer, "tokens")),
        "words": (of_words, examples(tokenizer, "none")),
    }


# ------------------------------------------------------------------------------------------------------- its collators


@pytest.mark.parametrize("name", ["padding", "tokens", "words"])
def test_a_wrapped_collator_s_batch_is_as_it_was_but_for_the_lengths(name: str, tokenizer: Any) -> None:
    collator, data = collators(tokenizer)[name]
    torch.manual_seed(3)
    want = collator([dict(example) for example in data])
    torch.manual_seed(3)
    got = PackingCollator(collator)([dict(example) for example in data])
    counts = {} if name == "padding" else {"label_counts": tuple((want["labels"] != -100).sum(1).tolist())}
    assert type(got) is type(want) and list(got) == [*want, "seq_lens", *counts]
    assert got["seq_lens"] == LENGTHS and all(got[key] == count for key, count in counts.items())
    assert all(torch.equal(got[key], value) for key, value in want.items())


@pytest.mark.parametrize("name", ["tokens", "words"])
def test_a_wrapped_collator_s_batch_is_flattened(name: str, tokenizer: Any) -> None:
    collator, data = collators(tokenizer)[name]
    torch.manual_seed(3)
    want = collator([dict(example) for example in data])
    torch.manual_seed(3)
    got = PackingCollator(collator, form="flat", position_ids_start=0)([dict(example) for example in data])
    real = want["attention_mask"].bool()
    for key in ("input_ids", "labels", "token_type_ids"):
        if key in want:
            assert torch.equal(got[key], want[key][real][None])
    assert (got["labels"][0, got["cu_seq_lens_q"][:-1].long()] == want["labels"][:, 0]).all()


def test_the_default_collator_with_padding_in_the_examples() -> None:
    data = [{"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "label": 1}, {"input_ids": [5, 0, 0]}]
    data[1] |= {"attention_mask": [1, 0, 0], "label": 0}
    batch = PackingCollator(transformers.default_data_collator)(data)
    assert batch["seq_lens"] == (2, 1) and batch["labels"].tolist() == [1, 0]


def test_padding_here_is_padding_there(tokenizer: Any) -> None:
    for name in ("padding", "tokens"):
        collator, data = collators(tokenizer)[name]
        got = PackingCollator(pad_token_id=tokenizer.pad_token_id)(data)
        want = PackingCollator(collator)([dict(example) for example in data])
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert torch.equal(got[key], value) if isinstance(value, torch.Tensor) else got[key] == value


def test_left_padding_is_refused_by_name(tokenizer: Any) -> None:
    left = transformers.BertTokenizerFast(vocab=tokenizer.get_vocab(), padding_side="left")
    with pytest.raises(ValueError, match=r"attention_mask: got row 1, .* tokenizer.padding_side = 'right'"):
        PackingCollator(transformers.DataCollatorWithPadding(left))(examples(left, "classes"))


# --------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(("family", "cls"), zoo.TEXT_CLASSES, ids=zoo.TEXT_IDS)
def test_an_unpatched_model_does_not_mind_the_lengths(family: Any, cls: str) -> None:
    """So that a model can be patched and unpatched without touching its data."""
    model, inputs = zoo.tiny_model(family, cls), zoo.inputs_for(family, cls)
    lengths = PackingCollator(lambda data: dict(inputs))([0])["seq_lens"]
    with torch.no_grad():
        want, got = model(**inputs), model(**inputs, seq_lens=lengths)
    assert all(torch.equal(got[name], want[name]) for name in want if torch.is_tensor(want[name]))


@pytest.mark.parametrize("kind", ["masked_lm", "token_classification"])
@pytest.mark.parametrize(
    "family", [f for f in zoo.TEXT_FAMILIES if zoo.passes_on(f)], ids=lambda family: family.model_type
)
def test_flat_padded_and_transformers_agree(family: Any, kind: str) -> None:
    cls = next(name for name, head in family.heads.items() if head.endswith(kind))
    model, inputs = zoo.tiny_model(family, cls), zoo.inputs_for(family, cls)
    counts_padding = hasattr(model.base_model.embeddings, "create_position_ids_from_input_ids")
    restarts = model.config.pad_token_id + 1 if counts_padding else 0
    real = inputs["attention_mask"].bool()
    want = model(**inputs)
    fasttx.patch(model)
    padded = model(**PackingCollator(lambda data: dict(inputs))([0]))
    flat = model(**PackingCollator(lambda data: dict(inputs), form="flat", position_ids_start=restarts)([0]))
    for got in (padded.logits[real], flat.logits[0]):
        torch.testing.assert_close(got, want.logits[real], rtol=1e-4, atol=1e-4)
    for got in (padded.loss, flat.loss):
        torch.testing.assert_close(got, want.loss, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------- Trainer and accelerate


def data_of(count: int) -> list[dict[str, Any]]:
    """Sequences of 2 to 14 tokens, the first of which says which one it is."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for i in range(count):
        length = int(torch.randint(2, 15, (), generator=generator))
        ids = [2 + i, *torch.randint(2, zoo.VOCAB, (length - 1,), generator=generator).tolist()]
        labels = [ids[j] if j % 2 else -100 for j in range(length)]
        made.append({"input_ids": ids, "labels": labels, "note": f"removed by Trainer, {i}"})
    return made


class Stream(IterableDataset):
    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        yield from self.data if worker is None else self.data[worker.id :: worker.num_workers]


class Run:
    """A short training with Trainer, and what reached the model."""

    def __init__(
        self, tmp_path: Path, collator: Any, sampler: Any = None, stream: bool = False, **options: Any
    ) -> None:
        pytest.importorskip("accelerate", reason="Trainer needs accelerate")
        self.calls: list[dict[str, Any]] = []
        model = zoo.tiny_model(zoo.BERT, "BertForMaskedLM")
        fasttx.patch(model)
        model.register_forward_pre_hook(lambda m, args, kwargs: self.calls.append(kwargs), with_kwargs=True)
        data = data_of(24)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            per_device_eval_batch_size=4,
            num_train_epochs=2,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=11,
            use_cpu=not torch.cuda.is_available(),
            **options,
        )

        class Trainer(transformers.Trainer):
            def get_train_dataloader(self) -> Any:
                if sampler is None:
                    return super().get_train_dataloader()
                collate = self._get_collator_with_removed_columns(self.data_collator)
                loader: Any = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=collate)
                return self.accelerator.prepare(loader)

        self.trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Stream(data) if stream else data,
            eval_dataset=data[:10],
            data_collator=collator,
        )
        self.trainer.train()
        self.losses = [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]

    def assert_lengths(self) -> None:
        assert self.calls
        for call in self.calls:
            lengths = call["seq_lens"]
            assert isinstance(lengths, (tuple, list)) and all(type(length) is int for length in lengths)
            assert list(lengths) == call["attention_mask"].sum(-1).tolist()
            assert "note" not in call


@pytest.mark.parametrize("workers", [0, 2])
def test_trainer_brings_the_lengths_to_the_model(tmp_path: Path, workers: int) -> None:
    options = dict(dataloader_num_workers=workers, dataloader_pin_memory=False)
    run = Run(tmp_path, PackingCollator(), **options)
    run.assert_lengths()
    assert len(run.losses) == 12

    class Without(PackingCollator):
        def __call__(self, features: Any) -> Any:
            batch = super().__call__(features)
            del batch["seq_lens"]
            return batch

    if workers == 0:
        assert run.losses == pytest.approx(Run(tmp_path, Without(), **options).losses, rel=1e-6)
        run.calls.clear()
        assert run.trainer.evaluate()["eval_loss"] > 0
        predicted = run.trainer.predict(run.trainer.eval_dataset)
        assert predicted.predictions.shape[0] == 10
        run.assert_lengths()


def test_trainer_with_flat_batches(tmp_path: Path) -> None:
    padded = Run(tmp_path, PackingCollator())
    flat = Run(tmp_path, PackingCollator(form="flat", position_ids_start=0))
    assert flat.losses == pytest.approx(padded.losses, rel=1e-3)
    for call in flat.calls:
        assert call["input_ids"].shape[0] == 1 and type(call["max_length_q"]) is int


@pytest.mark.parametrize("dispatch", [None, False])
def test_trainer_with_a_stream(tmp_path: Path, dispatch: bool | None) -> None:
    options: dict[str, Any] = dict(stream=True, max_steps=3, accelerator_config={"dispatch_batches": dispatch})
    Run(tmp_path, PackingCollator(), **options).assert_lengths()


def test_what_dispatches_batches_to_processes_takes_tensors_only(tokenizer: Any) -> None:
    """The known limit in docs/padding_free.md: an error, and no batch with another's lengths."""
    operations = pytest.importorskip("accelerate.utils.operations", reason="accelerate is not installed")
    batch = PackingCollator()(examples(tokenizer, "classes"))
    with pytest.raises(TypeError, match="Can only concatenate tensors but got <class 'int'>"):
        operations.concatenate([batch, batch])


@pytest.mark.parametrize("limit", [{"batch_size": 4}, {"max_tokens": 40}], ids=str)
def test_trainer_with_the_sampler_sees_every_example_in_a_new_order_each_epoch(
    tmp_path: Path, limit: dict[str, int]
) -> None:
    sampler = LengthBucketSampler([len(example["input_ids"]) for example in data_of(24)], **limit)
    run = Run(tmp_path, PackingCollator(), sampler=sampler)
    run.assert_lengths()
    assert run.trainer.state.global_step == len(run.calls) == 2 * len(sampler)
    epochs = [run.calls[: len(sampler)], run.calls[len(sampler) :]]
    seen = [[call["input_ids"][:, 0].tolist() for call in calls] for calls in epochs]
    for epoch in seen:
        assert sorted(i for batch in epoch for i in batch) == list(range(2, 26))
    assert seen[0] != seen[1]


def test_accelerate_moves_the_tensors_and_not_the_lengths(tokenizer: Any) -> None:
    operations = pytest.importorskip("accelerate.utils.operations", reason="accelerate is not installed")
    for collator in (PackingCollator(), PackingCollator(transformers.DataCollatorWithPadding(tokenizer))):
        batch = collator(examples(tokenizer, "classes"))
        assert operations.find_batch_size(batch) == len(TEXTS)
        moved = operations.send_to_device(batch, torch.device("meta"))
        assert moved["seq_lens"] == LENGTHS and type(moved["seq_lens"]) is tuple
        assert all(t.device.type == "meta" for name, t in moved.items() if name != "seq_lens")
