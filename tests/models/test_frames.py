"""What a patched model costs the host: Python frames of ours in a forward, where everything is fused."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from models import model_zoo as zoo

import fasttx

OURS = f"{Path(fasttx.__file__).parent}/"
AT_MOST = 164
"""Half of the 328 that one layer and the embeddings entered while each child's hooks were looked up by name."""
CHILDREN = 14
"""Which are passed over: 3 tables, 3 norms and 3 dropouts, 3 products of attention, the MLP's and its activation."""


def frames(call: Any) -> Counter[str]:
    """How often each function of fasttx is entered in a call, by file and name."""
    call()  # what the first call imports and compiles
    found: Counter[str] = Counter()

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS):
            found[f"{code.co_filename[len(OURS) :]}:{code.co_name}"] += 1

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_and_the_embeddings_enter_few_frames(training: bool) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel", num_hidden_layers=1).train(training)
    fasttx.patch(model, unpad=False)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    with torch.set_grad_enabled(training):
        found = frames(lambda: model(**inputs))
    assert found["models/fusions/joint_linear.py:joint_linear"] == 1  # all is fused
    assert found["functional/_dropout_add_layer_norm.py:_dropout_add_layer_norm"] == 2
    assert found.total() <= AT_MOST, found.most_common()
    assert sum(n for name, n in found.items() if name.startswith("nn/bypass.py")) <= CHILDREN, found.most_common()
