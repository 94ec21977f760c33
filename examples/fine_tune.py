"""Fine-tunes a classifier on lines of a label, a tab and a text; evaluates it, saves it and loads it again."""

import argparse
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, get_scheduler

import fasttx
from fasttx.data import LengthBucketSampler, PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="has train.txt and dev.txt")
parser.add_argument("--unpatched", action="store_true", help="leave fasttx out, to compare")
parser.add_argument("--tiny", action="store_true", help="32 texts only")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=256)
lines = {name: (args.data / name).read_text(encoding="utf-8").splitlines() for name in ("train.txt", "dev.txt")}
labels = sorted({line.split("\t")[0] for line in lines["train.txt"]})
loaders = []
for part in lines.values():
    pairs = [line.split("\t", 1) for line in part[: 32 if args.tiny else None]]
    rows = [{**tokenizer(text, truncation=True), "label": labels.index(label)} for label, text in pairs]
    sampler = LengthBucketSampler([len(row["input_ids"]) for row in rows], batch_size=16)
    collator = PackingCollator(DataCollatorWithPadding(tokenizer))
    loaders.append(DataLoader(rows, batch_sampler=sampler, collate_fn=collator))
train, dev = loaders

model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(labels)).to(device)
if not args.unpatched:
    print(fasttx.patch(model))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
scheduler = get_scheduler("linear", optimizer, len(train) // 4, 3 * len(train))
means, start = [], time.perf_counter()
for epoch in range(3):
    train.batch_sampler.set_epoch(epoch)
    losses = []
    for batch in train:
        losses.append(model.train()(**batch.to(device)).loss)
        losses[-1].backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    means.append(torch.stack(losses).mean().item())
seconds = time.perf_counter() - start

model.save_pretrained("classifier")
again = AutoModelForSequenceClassification.from_pretrained("classifier").to(device).eval()
fasttx.patch(again)
with torch.inference_mode():
    right = torch.cat([again(**batch.to(device)).logits.argmax(-1) == batch["labels"] for batch in dev])
print(f"loss of the epochs {means[0]:.3f} -> {means[-1]:.3f} in {seconds:.0f} s; accuracy {right.float().mean():.3f}")
