"""torch.jit.script of the drop-ins: it compiles torch's own classes on the same parameters."""

import copy

import pytest
import torch

import fasttx.nn as nn
from fasttx.nn.scripting import prepare_scriptable

BATCH = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
MODULES = {
    "Softmax": (lambda nn: nn.Softmax(-1), (BATCH,)),
    "LogSoftmax": (lambda nn: nn.LogSoftmax(-1), (BATCH,)),
    "GELU": (lambda nn: nn.GELU("tanh"), (BATCH,)),
    "LayerNorm": (lambda nn: nn.LayerNorm(8), (BATCH,)),
    "CrossEntropyLoss": (lambda nn: nn.CrossEntropyLoss(torch.arange(8.0)), (BATCH[0], torch.tensor([1, 7, -100, 2]))),
    "BCEWithLogitsLoss": (lambda nn: nn.BCEWithLogitsLoss(), (BATCH, BATCH.sigmoid())),
    "KLDivLoss": (lambda nn: nn.KLDivLoss(reduction="batchmean"), (BATCH, BATCH.sigmoid())),
    "MultiheadAttention": (lambda nn: nn.MultiheadAttention(8, 2), (BATCH, BATCH, BATCH)),
    "TransformerEncoder": (
        lambda nn: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1), (BATCH,),
    ),
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.mark.parametrize("name", MODULES)
def test_a_drop_in_can_be_scripted(name):
    make, args = MODULES[name]
    module = make(nn)
    kinds = [type(m) for m in module.modules()]
    scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(*args), module(*args))
    assert [type(m) for m in module.modules()] == kinds
    weights, shared = dict(module.named_parameters()), dict(scripted.named_parameters())
    assert all(shared[k].data_ptr() == p.data_ptr() for k, p in weights.items())
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(scripted).eval()(*args), copy.deepcopy(module).eval()(*args))


def test_a_subclass_is_scripted_with_its_own_forward():
    class Halved(nn.GELU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input / 2

    torch.testing.assert_close(torch.jit.script(Halved())(BATCH), BATCH / 2)


def test_what_is_no_drop_in_keeps_its_class():
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.LinearGELU(16, 16))
    assert type(prepare_scriptable(layer).activation) is nn.LinearGELU  # not torch's Linear, which it extends
