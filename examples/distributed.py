"""Fine-tunes a classifier on several GPUs or processes: `torchrun --nproc-per-node 2 distributed.py [--fsdp]`."""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import fasttx
from fasttx.data import LengthBucketSampler, PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--train", type=Path, default=Path(__file__).parent / "data" / "train.txt", help="label, tab, text")
parser.add_argument("--fsdp", action="store_true", help="shard weights, gradients and optimizer (FSDP2)")
parser.add_argument("--tiny", action="store_true", help="32 texts only")
args = parser.parse_args()
torch.manual_seed(0)  # the same model in each process
kind = "cuda" if torch.cuda.is_available() else "cpu"
device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device("cpu")
dist.init_process_group("nccl" if kind == "cuda" else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()

tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=256)
lines = args.train.read_text(encoding="utf-8").splitlines()
names = sorted({line.split("\t")[0] for line in lines})
pairs = [line.split("\t", 1) for line in lines[: 32 if args.tiny else None]]
rows = [{**tokenizer(text, truncation=True), "label": names.index(label)} for label, text in pairs]
sampler = LengthBucketSampler([len(row["input_ids"]) for row in rows], batch_size=8, num_replicas=world, rank=rank)
loader = DataLoader(rows, batch_sampler=sampler, collate_fn=PackingCollator(DataCollatorWithPadding(tokenizer)))

model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names)).to(device)
fasttx.patch(model)  # first patch, then wrap
for layer in [*model.base_model.encoder.layer, model] if args.fsdp else []:
    fully_shard(layer)
wrapped = model if args.fsdp else DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
means = []
for epoch in range(3):
    sampler.set_epoch(epoch)
    losses = []
    for batch in loader:
        losses.append(wrapped.train()(**batch.to(device)).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    mean = torch.stack(losses).mean().detach()
    dist.all_reduce(mean)
    means.append(mean.item() / world)
if rank == 0:
    print(f"loss of the epochs {means[0]:.3f} -> {means[-1]:.3f} in {world} processes")
dist.destroy_process_group()
