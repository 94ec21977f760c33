"""Tags names of code in prose: the words in quotes in Python's help texts, with the quotes taken away."""

import argparse
import random
import re
from pydoc_data.topics import topics

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification

import fasttx
from fasttx.data import PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--tiny", action="store_true", help="96 sentences only")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=128)
sentences = [sentence for text in topics.values() for sentence in re.split(r"(?<=[.])\s+(?=[A-Z])|\n\n", text)]
sentences = sorted({" ".join(s.split()) for s in sentences if s.count('"') in (2, 4) and "\n   " not in s})
random.Random(0).shuffle(sentences)
rows = []
for sentence in sentences[: 96 if args.tiny else 1200]:
    plain, tags = "", []
    for index, piece in enumerate(sentence.split('"')):  # odd pieces stood in quotes
        plain += piece
        tags += ([1] + [2] * (len(piece) - 1))[: len(piece)] if index % 2 else [0] * len(piece)  # B, I or O a character
    tokens = tokenizer(plain, truncation=True, return_offsets_mapping=True)
    labels = [-100 if start == end else tags[start] for start, end in tokens["offset_mapping"]]
    rows.append({"input_ids": tokens["input_ids"], "labels": labels})
cut = len(rows) * 3 // 4
collator = PackingCollator(DataCollatorForTokenClassification(tokenizer))
train = DataLoader(rows[:cut], batch_size=16, shuffle=True, collate_fn=collator)
dev = DataLoader(rows[cut:], batch_size=32, collate_fn=collator)

model = AutoModelForTokenClassification.from_pretrained(args.model, num_labels=3).to(device)
fasttx.patch(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
losses = []
for _ in range(2):
    for batch in train:
        loss = model.train()(**batch.to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
with torch.inference_mode():
    found = [(model.eval()(**batch.to(device)).logits.argmax(-1), batch["labels"]) for batch in dev]
guesses = torch.cat([guess[label >= 0] for guess, label in found])
labels = torch.cat([label[label >= 0] for _, label in found])
f1 = 2 * ((guesses == labels) & (labels > 0)).sum() / ((guesses > 0).sum() + (labels > 0).sum())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; F1 of the tokens of code {f1:.3f} on {len(rows) - cut} sentences")
