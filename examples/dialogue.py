"""Ranks what comes next in a dialogue: here a conversation is a passage, and a turn is a sentence of it."""

import argparse
import re
from pydoc_data.topics import topics

import torch
from transformers import AutoModel, AutoTokenizer

import fasttx

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--tiny", action="store_true", help="40 turns only")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

turns = []
for _, text in sorted(topics.items()):
    for passage in text.split("\n\n"):
        sentences = re.split(r"(?<=[.:]) (?=[A-Z])", " ".join(passage.split()))
        turns += [(" ".join(sentences[max(0, i - 3) : i]), sentences[i]) for i in range(1, len(sentences))]
turns = [turns[i] for i in torch.randperm(len(turns)).tolist()[: 40 if args.tiny else None]]
cut = len(turns) * 3 // 4
train, dev = turns[:cut], turns[cut:]
tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=48 if args.tiny else 128, truncation_side="left")
model = AutoModel.from_pretrained(args.model).to(device)
fasttx.patch(model)


def vectors(texts):
    batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(device)
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


@torch.inference_mode()
def right_of_ten():
    model.eval()
    found = [torch.cat([vectors(part) for part in zip(*dev[i : i + 10])]) for i in range(0, len(dev) - 9, 10)]
    best = torch.cat([(both[:10] @ both[10:].T).argmax(1) for both in found])
    return (best.cpu() == torch.arange(len(best)) % 10).float().mean().item()


before, losses = right_of_ten(), []
optimizer, loss_of = torch.optim.AdamW(model.parameters(), lr=3e-5), fasttx.nn.CrossEntropyLoss()
for _ in range(4):
    model.train()
    for some in torch.randperm(len(train)).split(16):
        histories, replies = (vectors(part) for part in zip(*[train[i] for i in some]))
        loss = loss_of(20 * histories @ replies.T, torch.arange(len(some), device=device))  # others' replies are wrong
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; the right reply of ten for {before:.3f} -> {right_of_ten():.3f}")
