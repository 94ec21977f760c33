"""Recommends as BERT4Rec does: a basket is what a module of the standard library imports, and one import is hidden."""

import argparse
import re
import sysconfig
from collections import Counter
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM

import fasttx
from fasttx.data import PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="20 epochs only")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

files = [path for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")) if "site-packages" not in path.parts]
texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
baskets = [list(dict.fromkeys(re.findall(r"^\s*(?:import|from) ([a-z]\w*)", text, re.M))) for text in texts]
count = Counter(name for basket in baskets for name in basket)
items = {name: n + 2 for n, (name, number) in enumerate(count.most_common()) if number >= 4}  # 0 pads, 1 hides
known = [[items[name] for name in basket if name in items][:30] for basket in baskets]
known = [known[i] for i in torch.randperm(len(known)) if len(known[i]) >= 3]
train, dev = known[: len(known) * 4 // 5], known[len(known) * 4 // 5 :]


def collate(baskets):
    rows = []
    for basket in baskets:  # another item is hidden in each epoch
        hidden = torch.arange(len(basket)) == torch.randint(len(basket), ())
        ids = torch.tensor(basket)
        rows.append({"input_ids": ids.masked_fill(hidden, 1), "labels": ids.masked_fill(~hidden, -100)})
    return {
        name: value.to(device) if torch.is_tensor(value) else value for name, value in PackingCollator()(rows).items()
    }


size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
model = BertForMaskedLM(BertConfig(vocab_size=len(items) + 2, max_position_embeddings=30, **size)).to(device)
fasttx.patch(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(20 if args.tiny else 60):
    for batch in DataLoader(train, 32, shuffle=True, collate_fn=collate):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

batch = collate(dev)
wanted = batch["labels"][batch["labels"] >= 0]
with torch.inference_mode():
    scores = model.eval()(**batch).logits[batch["labels"] >= 0]
hits = (scores.topk(10).indices == wanted[:, None]).any(1).float().mean()
print(f"the hidden import is one of ten guesses for {hits:.3f} of {len(dev)} modules", end="; ")
print(f"one of the ten most popular for {(wanted < 12).float().mean():.3f}")
