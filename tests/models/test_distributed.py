"""Two processes on one machine: DistributedDataParallel, FSDP1 and FSDP2 around a patched or pruned model."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import model_zoo as zoo

import fasttx
from fasttx.models.fusions import fusion

WORLD = 2


def batch() -> dict[str, torch.Tensor]:
    inputs = {name: t[:WORLD] for name, t in zoo.inputs_for(zoo.BERT, "BertForMaskedLM").items()}
    inputs["labels"][1, 1:] = -100  # very different numbers of labels on the two ranks
    inputs["labels"][1, 0] = 7
    return inputs


def new_model() -> Any:
    return zoo.tiny_model(zoo.BERT, "BertForMaskedLM")


def whole_batch_gradients() -> dict[str, torch.Tensor]:
    model = new_model()
    model(**batch()).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def share_of(rank: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {name: t[rank : rank + 1] for name, t in batch().items()}
    inputs["num_items_in_batch"] = (batch()["labels"] != -100).sum()
    return inputs


def run_ddp(rank: int) -> None:
    model = new_model()
    fasttx.patch(model)
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    loss = wrapped(**share_of(rank)).loss * WORLD  # DDP averages over the ranks
    loss.backward()
    for name, expected in whole_batch_gradients().items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, expected, rtol=1e-4, atol=1e-6)
    fasttx.unpatch(wrapped)
    assert not fasttx.is_patched(model)


def run_fsdp1(rank: int) -> None:
    """Patched before and after: a module of which a rank holds a part, flat or empty, is left alone with the reason."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    for early in (True, False):
        model = new_model()
        if early:
            fasttx.patch(model)
        policy = ModuleWrapPolicy({type(model.bert.encoder.layer[0])})
        device = torch.device("cpu")
        wrapped = FullyShardedDataParallel(model, use_orig_params=True, auto_wrap_policy=policy, device_id=device)
        if not early:
            report = fasttx.patch(wrapped)
            assert {row.after for row in report.replaced} >= {"attention: fasttx", "cross_entropy"}
            left = {row.before for row in report.left_alone if "which FSDP or ZeRO-3 has sharded" in row.reason}
            assert left >= {"embeddings, norm, dropout", "three products for q, k, v", "product, bias, GELU"}
            quantised = [row.reason for row in fasttx.quantize(wrapped).rows if ".encoder.layer." in row.module]
            assert len(quantised) == 2 * 6 and all("has sharded" in reason for reason in quantised)
        (wrapped(**share_of(rank)).loss * WORLD).backward()
        with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
            grads = {name.replace("_fsdp_wrapped_module.", ""): p.grad for name, p in wrapped.named_parameters()}
            for name, expected in whole_batch_gradients().items():
                torch.testing.assert_close(grads[name], expected, rtol=1e-4, atol=1e-6)


def run_fsdp(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    model = new_model()
    fasttx.patch(model)
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss = model(**share_of(rank)).loss * WORLD
    loss.backward()
    grads = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    for name, expected in whole_batch_gradients().items():
        torch.testing.assert_close(grads[name], expected, rtol=1e-4, atol=1e-6)
    for function in (fasttx.unpatch, fasttx.patch):
        with pytest.raises(ValueError, match="fully_shard"):
            function(model)

    late = new_model()
    fully_shard(late, mesh=mesh)
    report = fasttx.patch(late)
    assert [row.reason for row in report.left_alone] == ["was wrapped by fully_shard; patch first, then fully_shard"]
    assert len(report.replaced) == 2 * 5 + 2  # the modules inside are their own, and their weights plain in forward
    late(**share_of(rank)).loss.backward()


def run_pruned(rank: int) -> None:
    """Masks that are there before the wrapping hold under DDP and FSDP2; FSDP1, and pruning afterwards, are errors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    def pruned() -> Any:
        model = new_model()
        fasttx.prune(model, 0.5)
        fasttx.patch(model)
        return model

    def step(wrapped: Any) -> None:
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1)
        wrapped(**share_of(rank)).loss.backward()
        optimizer.step()

    def zeros(model: Any) -> list[torch.Tensor]:
        weights = [p for name, p in model.named_parameters() if ".dense.weight" in name and ".layer." in name]
        return [getattr(w, "full_tensor", lambda w=w: w)() == 0 for w in weights]

    wanted, ddp, sharded = zeros(pruned()), pruned(), pruned()
    step(torch.nn.parallel.DistributedDataParallel(ddp, find_unused_parameters=True))
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in sharded.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    step(sharded)
    for model in (ddp, sharded):
        assert len(wanted) == 6 and all(torch.equal(found, want) for found, want in zip(zeros(model), wanted))
    with pytest.raises(ValueError, match="each process holds a part; allowed is pruning first, fully_shard afterwards"):
        fasttx.prune(sharded, 0.6)
    fasttx.prune(sharded, finish=True)
    step(sharded)
    assert not any(bool(found.all()) for found in zeros(sharded))
    for whole in (True, False):
        wrapped = FullyShardedDataParallel(pruned(), use_orig_params=whole, device_id=torch.device("cpu"))
        with pytest.raises(ValueError, match="weight: got .* FSDP1.*; allowed is DDP and fully_shard"):
            step(wrapped)
    with pytest.raises(ValueError, match="allowed is pruning first"):
        fasttx.prune(FullyShardedDataParallel(new_model(), use_orig_params=True, device_id=torch.device("cpu")), 0.5)


def worker(rank: int, port: int) -> None:
    fusion.UNFUSED_ON = frozenset()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        run_ddp(rank)
        run_fsdp1(rank)
        run_fsdp(rank)
        run_pruned(rank)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # a thread of PyTorch's may outlive the interpreter, whose end is an abort then, without fasttx as well


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
def test_ddp_and_both_fsdp() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, args=(port,), nprocs=WORLD)
