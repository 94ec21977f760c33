"""The benchmark of the user's own model: real saved models and texts, every task, and what it says of them."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)

from bench import own, own_arms
from bench.own_model import InputError, load, read_texts
from bench.own_page import page

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60))]
LINES = [" ".join(f"w{(i * 7 + j) % 60}" for j in range(n)) for i, n in enumerate((1, 30, 3, 12, 5, 22, 2, 9, 4, 17))]


def saved(place: Path, cls: type, **more: object) -> str:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    cls(BertConfig(**shape, vocab_size=len(WORDS), max_position_embeddings=40, **more)).save_pretrained(place)
    (place / "words.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(place / "words.txt"), do_lower_case=True).save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    labels = {"num_labels": 3, "id2label": {0: "b", 1: "a", 2: "c"}, "label2id": {"b": 0, "a": 1, "c": 2}}
    return saved(tmp_path_factory.mktemp("classifier"), BertForSequenceClassification, **labels)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("encoder"), BertModel)


def texts(place: Path, labelled: bool = False) -> Path:
    path = place / "texts.txt"
    lines = [f"{'abc'[i % 3]}\t{line}" if labelled else line for i, line in enumerate(LINES)]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("task", ["embed", "classify", "train"])
def test_every_task_is_verified_and_timed(task: str, classifier: str, tmp_path: Path, capsys) -> None:
    given = [classifier, "--texts", str(texts(tmp_path, labelled=True)), "--task", task, "--batch", "4", "--quick"]
    out, html = tmp_path / "own.csv", tmp_path / "own.html"
    assert own.main([*given, "--seconds", "600", "--int8", "--out", str(out), "--html", str(html)]) == 0
    with out.open(encoding="utf-8") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    inference = set() if task == "train" else {own_arms.INT8, own_arms.CAPTURED}
    assert set(rows) == {own_arms.PLAIN, own_arms.FASTTX} | inference
    assert all(row["status"] == "ok" and float(row["texts_per_s"]) > 0 for row in rows.values())
    assert float(rows[own_arms.PLAIN]["gain"]) == 1.0
    if task != "train":
        assert float(rows[own_arms.CAPTURED]["difference"]) < 1e-5
        assert float(rows[own_arms.FASTTX]["difference"]) < 1e-5 < float(rows[own_arms.INT8]["difference"]) < 0.3
    printed = capsys.readouterr().out
    assert "10 texts" in printed and ("Call fasttx.patch(model)" in printed or "Leave this model" in printed)
    written = html.read_text(encoding="utf-8")
    assert "Batches of 4" in written and "http" not in written and own_arms.FASTTX in written


def test_what_a_model_is_for_decides_without_a_task(classifier: str, encoder: str) -> None:
    assert load(classifier, None, torch.float32)[2] == "classify"
    model, _, task = load(encoder, None, torch.float32)
    assert (type(model), task) == (BertModel, "embed")
    assert isinstance(load(encoder, "train", torch.float32)[0], BertForMaskedLM)


@pytest.mark.slow
def test_compilers_and_onnx_runtime_answer_as_the_model_does(encoder: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = own.run(encoder, read_texts(texts(tmp_path), 6), CPU, tmp_path / "own.csv", sizes=(1, 3))
    rows = {(row["arm"], row["batch"]): row for row in found.rows}
    for arm in (own_arms.FASTTX, own_arms.COMPILED, own_arms.FASTTX_COMPILED, own_arms.ONNX):
        for size in (1, 3):
            assert rows[arm, size]["status"] == "ok", rows[arm, size]
            assert rows[arm, size]["difference"] < 1e-4


def test_lines_with_a_label_each_are_labelled(tmp_path: Path) -> None:
    assert read_texts(texts(tmp_path, labelled=True), 4).labels == ["a", "b", "c", "a"]
    assert read_texts(texts(tmp_path), 99).lines == LINES
    mixed = tmp_path / "mixed.txt"
    mixed.write_text("a\tone\ntwo\n", encoding="utf-8")
    assert read_texts(mixed, 9).labels is None


def test_training_batches_carry_the_labels_of_the_file(classifier: str, tmp_path: Path) -> None:
    model, tokenizer, task = load(classifier, "train", torch.float32)
    given = read_texts(texts(tmp_path, labelled=True), 99)
    batches = own.batches_of(given, model, tokenizer, 4, 40, task, CPU)
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [1, 0, 2, 1, 0, 2, 1, 0, 2, 1]


@pytest.mark.parametrize("given", ["encoder", "classifier"])
def test_an_encoder_is_fine_tuned_on_the_labels_of_the_file(given: str, request, tmp_path: Path) -> None:
    name = request.getfixturevalue(given)
    lines = read_texts(texts(tmp_path, labelled=True), 99)
    model, _, task = load(name, "fine-tune", torch.float32, lines.labels)
    assert type(model) is BertForSequenceClassification and model.config.num_labels == 3 and task == "fine-tune"
    arguments = [name, "--texts", str(texts(tmp_path, labelled=True)), "--task", "fine-tune", "--batch", "5", "--quick"]
    assert own.main([*arguments, "--device", "cpu", "--out", str(tmp_path / "own.csv")]) == 0
    with (tmp_path / "own.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["status"], row["longest"]) for row in rows] == [("fine-tune", "ok", "32")] * 2
    found = own.run(name, lines, CPU, tmp_path / "again.csv", task="fine-tune", sizes=(5,), quick=True)
    assert found.ok and found.verified.startswith("outputs, loss and gradients agree")
    with pytest.raises(
        InputError, match="--task: got fine-tune, and not every text has a label; allowed is label, tab"
    ):
        load(name, "fine-tune", torch.float32, None)


@pytest.mark.parametrize(("pad", "widths"), [("longest", [32, 24, 19]), ("max", [40, 40, 40])])
def test_batches_are_padded_as_asked(pad: str, widths: list[int], encoder: str, tmp_path: Path) -> None:
    model, tokenizer, task = load(encoder, "embed", torch.float32)
    given = read_texts(texts(tmp_path), 99)
    batches = own.batches_of(given, model, tokenizer, 4, 40, task, CPU, pad)
    assert [batch["input_ids"].shape[1] for batch in batches] == widths
    assert all(batch["input_ids"].shape == batch["attention_mask"].shape for batch in batches)
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == sum(len(line.split()) + 2 for line in LINES)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind, shape", [("multi_label_classification", (10, 3)), ("regression", (10,))])
def test_a_head_gets_labels_of_its_kind(kind: str, shape: tuple[int, ...], labelled: bool, tmp_path: Path) -> None:
    name = saved(tmp_path, BertForSequenceClassification, num_labels=shape[-1] % 10 or 1, problem_type=kind)
    given = read_texts(texts(tmp_path, labelled), 99)
    model, tokenizer, task = load(name, "train", torch.float32)
    (batch,) = own.batches_of(given, model, tokenizer, 10, 40, task, CPU)
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == shape
    found = own.run(name, given, CPU, tmp_path / "own.csv", task=task, sizes=(5,), quick=True)
    assert found.ok and [row["status"] for row in found.rows] == ["ok", "ok"]


def test_texts_are_cut_where_positions_that_count_from_the_padding_end(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(**size, vocab_size=len(WORDS), max_position_embeddings=20, pad_token_id=0)
    RobertaModel(config).save_pretrained(tmp_path)
    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(tmp_path / "words.txt")).save_pretrained(tmp_path)
    found = own.run(str(tmp_path), read_texts(texts(tmp_path), 99), CPU, tmp_path / "own.csv", sizes=(5,), quick=True)
    assert found.ok and all(row["status"] == "ok" for row in found.rows)


def test_a_model_that_is_not_patched_is_refused(encoder: str, tmp_path: Path, capsys) -> None:
    GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=len(WORDS), n_positions=40)).save_pretrained(
        tmp_path
    )
    BertTokenizerFast(vocab=str(Path(encoder) / "words.txt")).save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        own.main([str(tmp_path), "--texts", str(texts(tmp_path)), "--out", str(tmp_path / "own.csv")])
    last = capsys.readouterr().err.splitlines()[-1]
    assert "allowed is a model of fasttx's families: fasttx.patch replaced nothing in GPT2Model" in last
    assert not (tmp_path / "own.csv").exists()


def test_masked_tokens_are_real_ones_and_each_row_has_one(encoder: str, tmp_path: Path) -> None:
    model, tokenizer, task = load(encoder, "train", torch.float32)
    for batch in own.batches_of(read_texts(texts(tmp_path), 99), model, tokenizer, 5, 40, task, CPU):
        wanted = batch["labels"] != -100
        assert wanted.any(1).all() and not (wanted & ~batch["attention_mask"].bool()).any()
        assert (batch["input_ids"][wanted] == tokenizer.mask_token_id).all()
        assert (batch["labels"][wanted] != tokenizer.mask_token_id).all()


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"--texts": "no_such_file"}, "which is no file; allowed is a file with a text on each line"),
        ({"--task": "classify"}, "--task: got classify"),
        ({"--batch": "0"}, "allowed are whole numbers from 1"),
        ({"MODEL": "no/such/folder/here"}, "which transformers cannot load"),
    ],
)
def test_what_is_wrong_is_one_line(change: dict[str, str], expected: str, encoder: str, tmp_path: Path, capsys) -> None:
    options = {"--texts": str(texts(tmp_path)), "--out": str(tmp_path / "own.csv")} | change
    model = options.pop("MODEL", encoder)
    with pytest.raises(SystemExit) as raised:
        own.main([model, *(part for pair in options.items() for part in pair)])
    assert raised.value.code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "own.csv").exists()


def test_files_that_hold_no_text_are_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n \n", encoding="utf-8")
    binary.write_bytes(b"ok\n\xff\xfe")
    for path, why in ((empty, "holds no text"), (binary, "not UTF-8")):
        with pytest.raises(InputError, match=why):
            read_texts(path, 9)


# ------------------------------------------------------------------------------------------------------ what it says


def measured(
    gain: float | None, compiled: float | None = None, ok: bool = True, captured: float | None = None
) -> own.Own:
    base = {"texts": 9, "batch": 8, "real": 0.4, "device": "cpu", "status": "ok", "texts_per_s": 1.0, "ms": 1.0}
    rows = [{**base, "arm": own_arms.PLAIN, "gain": 1.0}]
    rows.append({**base, "arm": own_arms.FASTTX, **({"gain": gain} if gain else {"status": "ValueError: no"})})
    if captured:
        rows.append({**base, "arm": own_arms.CAPTURED, "gain": captured})
    if compiled:
        rows.append({**base, "arm": own_arms.COMPILED, "gain": compiled})
    return own.Own("x<y", "embed", rows, verified="the results agree with float64", ok=ok)


def test_the_sentence_says_what_to_call_and_what_it_brings() -> None:
    assert "Call fasttx.patch(model)" in measured(1.7).sentence and "1.70 x as fast" in measured(1.7).sentence
    assert "still" not in measured(1.7, compiled=1.6).sentence
    assert measured(1.7, compiled=2.5).sentence.endswith("torch.compile is faster still: 2.50 x.")
    assert "Leave this model as it is" in measured(1.01).sentence and "60% of the tokens" in measured(1.01).sentence
    assert "nothing here (1.01 x)." in measured(1.01).sentence
    assert "ValueError: no" in measured(None).sentence
    assert "Call fasttx.patch(model)" in measured(1.7, captured=1.72).sentence
    assert "Call fasttx.capture(model)" in measured(1.01, captured=1.9).sentence
    assert "1.90 x as fast" in measured(1.01, captured=1.9).sentence
    assert "Do not patch this model" in measured(1.7, ok=False).sentence


def test_times_of_a_busy_machine_are_said_to_mean_little() -> None:
    found = measured(1.7)
    assert "other work" not in found.sentence
    found.busy = 1.4
    assert "other work took 1.4 cores: the times mean little" in found.sentence
    found.alone = True
    assert "Other work took 1.4 cores; times are what the processor spent on this alone." in found.sentence


@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_is_timed_without_what_other_work_takes(
    threads: int, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = []
    timed = own.interleaved
    monkeypatch.setattr(own, "interleaved", lambda *a, clock, **more: clocks.append(clock) or timed(*a, **more))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = own.run(encoder, read_texts(texts(tmp_path), 9), CPU, tmp_path / "own.csv", sizes=(9,), quick=True)
    finally:
        torch.set_num_threads(before)
    assert found.alone == (threads == 1) and clocks == [time.process_time if threads == 1 else time.perf_counter]


def test_compilers_can_be_left_out(encoder: str, tmp_path: Path) -> None:
    arguments = [encoder, "--texts", str(texts(tmp_path)), "--batch", "9", "--no-compilers", "--device", "cpu"]
    assert own.main([*arguments, "--out", str(tmp_path / "own.csv")]) == 0
    with (tmp_path / "own.csv").open() as file:
        assert [row["arm"] for row in csv.DictReader(file)] == [own_arms.PLAIN, own_arms.FASTTX, own_arms.CAPTURED]


def test_the_page_escapes_names_and_holds_every_arm() -> None:
    written = page(measured(1.7, compiled=2.5))
    assert "x&lt;y" in written and "x<y" not in written
    assert all(f"<td>{arm}</td>" in written for arm in (own_arms.PLAIN, own_arms.FASTTX, own_arms.COMPILED))


def test_a_wrong_model_is_said_and_fails(encoder: str, tmp_path: Path, monkeypatch, capsys) -> None:
    true = own.fasttx.verify

    def wrong(model: object, batch: object) -> object:
        found = true(model, batch)
        found.rows[0] = type(found.rows[0])("output", "last_hidden_state", 1.0, 1e-7, 1e-6)
        return found

    monkeypatch.setattr(own.fasttx, "verify", wrong)
    given = [encoder, "--texts", str(texts(tmp_path)), "--batch", "4", "--quick", "--out", str(tmp_path / "own.csv")]
    assert own.main(given) == 1
    printed = capsys.readouterr().out
    assert "Do not patch this model: output last_hidden_state is off by 1.0e+00" in printed
    with (tmp_path / "own.csv").open(encoding="utf-8") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows[own_arms.FASTTX]["status"].startswith("wrong: output") and rows[own_arms.FASTTX]["ms"] == ""
    assert rows[own_arms.PLAIN]["status"] == "ok"
