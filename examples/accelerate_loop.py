"""Fine-tunes a classifier in a loop with accelerate: start it by `accelerate launch`, or as it is on one device."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import fasttx
from fasttx.data import LengthBucketSampler, PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--train", type=Path, default=Path(__file__).parent / "data" / "train.txt", help="label, tab, text")
parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
parser.add_argument("--tiny", action="store_true", help="32 texts only")
args = parser.parse_args()
torch.manual_seed(0)
accelerator = Accelerator(mixed_precision="bf16" if args.bf16 else "no", gradient_accumulation_steps=2)

tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=256)
lines = args.train.read_text(encoding="utf-8").splitlines()
names = sorted({line.split("\t")[0] for line in lines})
pairs = [line.split("\t", 1) for line in lines[: 32 if args.tiny else None]]
rows = [{**tokenizer(text, truncation=True), "label": names.index(label)} for label, text in pairs]
lengths = [len(row["input_ids"]) for row in rows]
sampler = LengthBucketSampler(lengths, batch_size=8, num_replicas=accelerator.num_processes)
collator = PackingCollator(DataCollatorWithPadding(tokenizer))

model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names))
fasttx.patch(model)  # first patch, then prepare
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
loader = DataLoader(rows, batch_sampler=sampler, collate_fn=collator)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
means = []
model.train()
for epoch in range(3):
    loader.set_epoch(epoch)
    losses = []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()).mean())
    means.append(torch.stack(losses).mean().item())
accelerator.wait_for_everyone()
accelerator.unwrap_model(model).save_pretrained("accelerated", is_main_process=accelerator.is_main_process)
accelerator.print(f"loss of the epochs {means[0]:.3f} -> {means[-1]:.3f} in {accelerator.num_processes} process(es)")
