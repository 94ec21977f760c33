"""Distils a fine-tuned classifier into one with half of its layers, which learns from labels and from the teacher."""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import fasttx
from fasttx import nn
from fasttx.data import PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="has train.txt and dev.txt")
parser.add_argument("--tiny", action="store_true", help="32 texts only")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=256)
lines = {name: (args.data / name).read_text(encoding="utf-8").splitlines() for name in ("train.txt", "dev.txt")}
names = sorted({line.split("\t")[0] for line in lines["train.txt"]})
loaders = []
for part in lines.values():
    pairs = [line.split("\t", 1) for line in part[: 32 if args.tiny else None]]
    rows = [{**tokenizer(text, truncation=True), "label": names.index(label)} for label, text in pairs]
    collator = PackingCollator(DataCollatorWithPadding(tokenizer))
    loaders.append(DataLoader(rows, 16, shuffle=True, collate_fn=collator))
teacher = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names)).to(device)
half = {"num_labels": len(names), "num_hidden_layers": teacher.config.num_hidden_layers // 2}
student = AutoModelForSequenceClassification.from_pretrained(args.model, **half).to(device)
distilled = nn.DistillationLoss(temperature=2.0, alpha=0.5)


def fit(model, loss_of):
    fasttx.patch(model)
    optimizer, means = torch.optim.AdamW(model.parameters(), lr=2e-4), []
    for _ in range(3):
        losses = []
        for batch in loaders[0]:
            losses.append(loss_of(model.train()(**batch.to(device)), batch))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        means.append(torch.stack(losses).mean().item())
    with torch.inference_mode():
        right = [model.eval()(**batch.to(device)).logits.argmax(-1) == batch["labels"] for batch in loaders[1]]
    return f"loss {means[0]:.3f} -> {means[-1]:.3f}, accuracy {torch.cat(right).float().mean():.3f}"


def both(out, batch):
    with torch.no_grad():
        wanted = teacher(**batch).logits
    return distilled(out.logits, wanted, batch["labels"])


print(f"teacher: {fit(teacher, lambda out, batch: out.loss)}; half the layers: {fit(student, both)}")
