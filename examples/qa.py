"""Answers questions by a span of the passage: sentences of Python's help texts ask for the word in quotes they lack."""

import argparse
import random
import re
from pydoc_data.topics import topics

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding

import fasttx
from fasttx.data import PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--tiny", action="store_true", help="40 passages only")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

tokenizer = AutoTokenizer.from_pretrained(args.model)
passages = sorted({" ".join(text.split()) for topic in topics.values() for text in topic.split("\n\n")})
random.Random(0).shuffle(passages)
rows = []
for passage in [text for text in passages if 150 < len(text) < 700 and '"' in text][: 40 if args.tiny else None]:
    for match in re.finditer(r'[^."]*"([\w.()]+)"[^."]*\.', passage):
        start, end = match.span(1)
        question = f"{passage[match.start() : start]}what{passage[end : match.end()]}".strip()
        tokens = tokenizer(question, passage, truncation="only_second", max_length=256)
        first, last = (tokens.char_to_token(0, at, 1) for at in (start, end - 1))  # None: cut off
        if first is not None and last is not None:
            rows.append({**tokens, "start_positions": first, "end_positions": last})
cut = len(rows) * 3 // 4
collator = PackingCollator(DataCollatorWithPadding(tokenizer))
train = DataLoader(rows[:cut], 16, shuffle=True, collate_fn=collator)
dev = DataLoader(rows[cut:], 32, collate_fn=collator)

model = AutoModelForQuestionAnswering.from_pretrained(args.model).to(device)
fasttx.patch(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
means, right = [], 0
for _ in range(2 if args.tiny else 4):
    losses = []
    for batch in train:
        loss = model.train()(**batch.to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    means.append(sum(losses) / len(losses))
for batch in dev:
    with torch.inference_mode():
        out = model.eval()(**batch.to(device))
    starts, ends = (logits.argmax(-1) for logits in (out.start_logits, out.end_logits))
    right += ((starts == batch["start_positions"]) & (ends == batch["end_positions"])).sum().item()
print(f"loss of the epochs {means[0]:.3f} -> {means[-1]:.3f}", end="; ")
print(f"{right / (len(rows) - cut):.3f} of {len(rows) - cut} answers are exact")
