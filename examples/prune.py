"""Prunes the smallest weights of each layer step by step, and fine-tunes the rest under the masks."""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import fasttx
from fasttx.data import PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--train", type=Path, default=Path(__file__).parent / "data" / "train.txt", help="label, tab, text")
parser.add_argument("--share", type=float, default=0.5, help="of the weights, to prune")
parser.add_argument("--tiny", action="store_true", help="32 texts only")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=256)
lines = args.train.read_text(encoding="utf-8").splitlines()
names = sorted({line.split("\t")[0] for line in lines})
pairs = [line.split("\t", 1) for line in lines[: 32 if args.tiny else None]]
rows = [{**tokenizer(text, truncation=True), "label": names.index(label)} for label, text in pairs]
loader = DataLoader(rows, 16, shuffle=True, collate_fn=PackingCollator(DataCollatorWithPadding(tokenizer)))

model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names)).to(device)
print(fasttx.patch(model))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
means, epochs = [], 3
model.train()
for epoch in range(epochs):
    report = fasttx.prune(model, args.share * (1 - (1 - (epoch + 1) / epochs) ** 3))  # keeps what it pruned before
    losses = []
    for batch in loader:
        losses.append(model(**batch.to(device)).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    means.append(torch.stack(losses).mean().item())
print(report)
fasttx.prune(model, finish=True)  # the zeros stay
model.save_pretrained("pruned")
print(f"loss of the epochs {means[0]:.3f} -> {means[-1]:.3f} with {report.zeros:.3f} of the layers' weights 0")
