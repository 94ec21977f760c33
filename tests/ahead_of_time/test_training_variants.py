"""How many kernels a padding-free training run of a BERT-base compiles: each once, whatever the number of tokens."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("a process of its own without Triton's interpreter: make aot", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import gpu_prepare
from ahead_of_time.dry_device import forget
from transformers import BertConfig, BertForMaskedLM

import fasttx

MOST = 14


LENGTHS = ((400, 7, 105), (256, 240, 16), (400, 400, 40), (201, 200, 1), (333, 5, 64))
"""512 and 840 tokens, which fill 8 and 13 blocks of 64, and numbers of tokens that are odd."""


def batches(vocabulary: int) -> Iterator[dict[str, torch.Tensor]]:
    for lengths in LENGTHS:
        mask = torch.arange(400) < torch.tensor(lengths)[:, None]
        ids = torch.randint(5, vocabulary, (3, 400)).where(mask, 0)
        labels = torch.where(mask & (torch.arange(400) % 7 == 0), ids, -100)
        yield {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


@pytest.mark.timeout(1200)
def test_a_training_run_of_a_bert_base() -> None:
    """Two of its layers, as the others are like them; the widths are its own, on which variants hang."""
    config = BertConfig(num_hidden_layers=2)
    with gpu_prepare.pretended({}) as records:
        forget()  # what other tests launched counts too
        model = BertForMaskedLM(config).to(torch.bfloat16).train()
        fasttx.patch(model, norm=True, mlp=True, mlm_head=True)
        seen = []
        for batch in batches(config.vocab_size):
            model(**batch).loss.backward()
            seen.append(len(records))
    found = Counter(f"{record.module}.{record.name} {record.configuration}" for record in records)
    backward = [name for name in found if "attention_bwd_dkdv" in name]
    assert backward and all("i32" in name for name in backward), "not packed: there are no cu_seqlens"
    assert any("cross_entropy_bwd" in name for name in found)
    assert set(seen) == {seen[0]}, f"compiled by step: {seen}; {found}"
    assert seen[0] <= MOST, found
