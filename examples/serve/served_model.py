"""A saved model for one task: its tokeniser, which may run in several threads, and its forward on a batch of texts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import fasttx.models  # by which from_pretrained reads int8 models too

TASKS = ("embed", "rerank", "classify")
POOLINGS = ("mean", "cls", "max")


class CannotServeError(Exception):
    """The folder, or what was asked of it, in one message."""


class Tokens:
    """A tokenised text, or a pair of them."""

    __slots__ = ("ids", "types", "truncated")

    def __init__(self, ids: list[int], types: list[int], truncated: bool) -> None:
        self.ids, self.types, self.truncated = ids, types, truncated

    def __len__(self) -> int:
        return len(self.ids)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def task_of(config: Any, asked: str) -> str:
    """The task that a model's class and labels are for; `asked` is one of TASKS, or "auto"."""
    name = (config.architectures or ["a model without a head"])[0]
    scores = name.endswith("ForSequenceClassification")
    found = "embed" if not scores else "rerank" if config.num_labels == 1 else "classify"
    if asked in ("auto", found, "embed"):
        return found if asked == "auto" else asked
    heads = f"{name} with {config.num_labels} labels" if scores else name
    needs = {"rerank": "one label", "classify": "two labels or more"}[asked]
    raise CannotServeError(
        f"--task: got {asked} for {heads}; allowed is embed, or a ...ForSequenceClassification with {needs}"
    )


def pooling_of(folder: Path) -> tuple[str, bool]:
    """How sentence-transformers makes one vector of a text, and whether it normalises: mean, yes without it."""
    modules = _json(folder / "modules.json")
    if not modules:
        return "mean", True
    kinds = {each["type"].rsplit(".", 1)[-1]: each["path"] for each in modules}
    if strange := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        names = ", ".join(sorted(strange))
        raise CannotServeError(f"{folder / 'modules.json'}: got {names}; allowed is Transformer, Pooling, Normalize")
    options = _json(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else {}
    old = [
        key.removeprefix("pooling_mode_").split("_")[0]
        for key in options
        if key.startswith("pooling_mode_") and options[key]
    ]
    mode = options.get("pooling_mode") or (old[0] if len(old) == 1 else old)
    if mode not in POOLINGS:
        raise CannotServeError(f"{folder}: got the pooling {mode}; allowed is {', '.join(POOLINGS)}")
    return mode, "Normalize" in kinds


class ServedModel:
    """Loads a folder and patches the model.

    Args:
        folder: of a saved transformers or sentence-transformers model, with its tokeniser.
        task: of TASKS, or "auto".
        patched: whether fasttx patches it.
        int8: whether its linear layers keep int8 weights.
        bf16: whether weights and activations are bfloat16.
        capture: whether its encoder is frozen for inference on a CPU (fasttx.capture).
        max_tokens: of a text; what is over is cut. None for the model's own limit.

    Raises:
        CannotServeError: something is missing, or does not go together.
    """

    def __init__(
        self,
        folder: Path,
        task: str = "auto",
        *,
        patched: bool = True,
        int8: bool = False,
        bf16: bool = False,
        capture: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        if not (folder / "config.json").is_file():
            what = "has no config.json" if folder.is_dir() else "is no folder"
            raise CannotServeError(
                f"DIR: got {folder}, which {what}; allowed is the folder of a saved transformers model"
            )
        logging.disable_progress_bar()
        self.name = folder.resolve().name
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self.task = task_of(self.config, task)
            loader = AutoModel if self.task == "embed" else AutoModelForSequenceClassification
            dtype = torch.bfloat16 if bf16 else torch.float32
            self.model = loader.from_pretrained(folder, local_files_only=True, dtype=dtype).to(self.device).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            files = tokenizer.vocab_files_names.values()
            if not any((folder / file).is_file() for file in files):  # transformers makes one of no words
                raise ValueError(f"it has no tokeniser ({' or '.join(files)})")
        except (OSError, ValueError, KeyError, RuntimeError) as problem:
            first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise CannotServeError(f"DIR: got {folder}, which cannot be loaded: {first}") from None
        self.pooling, self.normalise = pooling_of(folder) if self.task == "embed" else ("", False)
        self._prepare_tokeniser(folder, tokenizer, max_tokens)
        self.report = f"{type(self.model).__name__}, unpatched"
        name = type(self.model).__name__
        if patched:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "fasttx.patch replaced nothing")  # which is an error here
                found = fasttx.patch(self.model, loss=None)
            if not found.replaced:
                raise CannotServeError(f"DIR: got {name}, of which fasttx replaces nothing; --unpatched serves it")
            self.report = f"{name}: fasttx replaced {len(found.replaced)} parts, left {len(found.left_alone)} alone"
        if int8:
            try:
                fasttx.quantize(self.model)
            except ValueError as problem:
                raise CannotServeError(f"--int8: {problem}") from None
        if capture:
            try:
                self.captured = fasttx.capture(self.model)
            except ValueError as problem:
                raise CannotServeError(f"--capture: {problem}") from None
            self.report += ", captured"

        try:
            self(self.tokenise(["A first text, so that the first client need not wait."]))
        except (RuntimeError, ValueError, TypeError, AttributeError) as problem:
            raise CannotServeError(f"DIR: got {folder}, whose {name} fails on a text: {problem}") from None

    def _prepare_tokeniser(self, folder: Path, tokenizer: Any, max_tokens: int | None) -> None:
        """The tokeniser in Rust itself, set up once: transformers' own call sets it up each time, and threads clash."""
        self.tokeniser = getattr(tokenizer, "backend_tokenizer", None)
        if self.tokeniser is None:
            raise CannotServeError(
                f"DIR: got {folder}, whose tokeniser is in Python; allowed is one with a tokenizer.json"
            )
        self.pad_id = tokenizer.pad_token_id or 0
        self.has_types = "token_type_ids" in tokenizer.model_input_names
        positions = getattr(self.config, "max_position_embeddings", None) or 512
        if self.config.model_type in ("roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet"):
            positions -= (self.config.pad_token_id or 0) + 1  # where their positions start
        own = _json(folder / "sentence_bert_config.json").get("max_seq_length") or positions
        most = min(positions, own, tokenizer.model_max_length)
        if max_tokens is not None and not 3 <= max_tokens <= positions:
            raise CannotServeError(
                f"--max-tokens: got {max_tokens}; allowed is 3 to {positions}, the model's positions"
            )
        self.max_tokens = max_tokens or most
        self.tokeniser.no_padding()
        self.tokeniser.enable_truncation(self.max_tokens)

    def tokenise(self, texts: list[str] | list[tuple[str, str]]) -> list[Tokens]:
        """Any number of threads may call it; the tokeniser leaves Python's lock while it works."""
        found = self.tokeniser.encode_batch_fast(texts)
        return [Tokens(each.ids, each.type_ids, bool(each.overflowing)) for each in found]

    @torch.inference_mode()
    def __call__(self, batch: list[Tokens]) -> np.ndarray:
        """A row for each text: a vector, or probabilities. The patched encoder computes real tokens alone."""
        longest = max(map(len, batch))
        ids = torch.full((len(batch), longest), self.pad_id)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for row, each in enumerate(batch):
            ids[row, : len(each)] = torch.tensor(each.ids)
            types[row, : len(each)] = torch.tensor(each.types)
            mask[row, : len(each)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if self.has_types else {})
        output = self.model(**{name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()})
        if self.task == "embed":
            rows = self._pool(output.last_hidden_state.float(), mask.to(self.device).unsqueeze(-1))
        elif self.config.num_labels == 1 or self.config.problem_type == "multi_label_classification":
            rows = output.logits.float().sigmoid()
        else:
            rows = output.logits.float().softmax(-1)
        found = rows.cpu().numpy()
        if not np.isfinite(found).all():
            raise RuntimeError("the model's result is not finite")
        return found

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            rows = hidden[:, 0]
        elif self.pooling == "max":
            rows = hidden.masked_fill(mask == 0, float("-inf")).amax(1)
        else:
            rows = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(rows, dim=-1) if self.normalise else rows
