"""Gives a passage several labels: the related topics that Python's `help()` names for the topic it comes from."""

import argparse
import pydoc
import random
from collections import Counter
from pydoc_data.topics import topics

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import fasttx
from fasttx.data import LengthBucketSampler, PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--tiny", action="store_true", help="64 passages only")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=128)
helps = {entry[0]: entry[1].split() for entry in pydoc.Helper.topics.values() if isinstance(entry, tuple)}
count = Counter(label for related in helps.values() for label in related)
names = sorted(label for label, number in count.items() if number >= 3)
rows = []
for name in sorted(set(helps) & set(topics)):
    for text in topics[name].split("\n\n"):
        tokens = tokenizer(" ".join(text.split()), truncation=True)["input_ids"]
        truth = [float(label in helps[name]) for label in names]
        if len(tokens) > 20 and any(truth):
            rows.append({"input_ids": tokens, "labels": truth})
rows = random.Random(0).sample(rows, 64 if args.tiny else len(rows))
cut = len(rows) * 3 // 4
collator = PackingCollator(DataCollatorWithPadding(tokenizer))
loaders = []
for part in (rows[:cut], rows[cut:]):
    sampler = LengthBucketSampler([len(row["input_ids"]) for row in part], batch_size=16)
    loaders.append(DataLoader(part, batch_sampler=sampler, collate_fn=collator))
train, dev = loaders

kind = {"num_labels": len(names), "problem_type": "multi_label_classification"}
model = AutoModelForSequenceClassification.from_pretrained(args.model, **kind).to(device)
fasttx.patch(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
losses = []
for epoch in range(4):
    train.batch_sampler.set_epoch(epoch)
    for batch in train:
        loss = model.train()(**batch.to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
with torch.inference_mode():
    found = [(model.eval()(**batch.to(device)).logits, batch["labels"]) for batch in dev]
right = torch.cat([labels.gather(1, guess.argmax(1, keepdim=True)) for guess, labels in found]).mean()
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; the first guess of {len(names)} labels is right for {right:.3f}")
