"""Trains a reranker (a cross-encoder): which of eight help texts a title belongs to."""

import argparse
from pydoc_data.topics import topics

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fasttx

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--tiny", action="store_true", help="12 titles, 3 candidates each")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
CANDIDATES = 3 if args.tiny else 8

pairs = []
for text in sorted(topics.values())[: 12 if args.tiny else None]:
    title, *passages = [" ".join(part.split()) for part in text.split("\n\n")]
    pairs.append((title.strip("* "), max(passages, key=len)))
train, dev = pairs[: len(pairs) * 3 // 4], pairs[len(pairs) * 3 // 4 :]
tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=64 if args.tiny else 128)
model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1).to(device)
fasttx.patch(model)


def scores(some, among):
    """(titles, CANDIDATES): of each title with its own passage first, and with others after it."""
    titles, passages = [], []
    for i in some:
        others = (i + 1 + torch.randperm(len(among) - 1)[: CANDIDATES - 1]) % len(among)
        titles += [among[i][0]] * (1 + len(others))
        passages += [among[j][1] for j in [i, *others.tolist()]]
    batch = tokenizer(titles, passages, padding=True, truncation="only_second", return_tensors="pt").to(device)
    return model(**batch).logits.view(len(some), -1)


@torch.inference_mode()
def first_rank():
    torch.manual_seed(1)  # the same candidates each time
    found = model.eval() and torch.cat([scores([i], dev) for i in range(len(dev))])
    return (found.argmax(1) == 0).float().mean().item()


before, losses = first_rank(), []
optimizer, loss_of = torch.optim.AdamW(model.parameters(), lr=2e-4), fasttx.nn.CrossEntropyLoss()
for _ in range(12 if args.tiny else 4):
    for some in torch.randperm(len(train)).split(4):
        found = model.train() and scores(some.tolist(), train)
        loss = loss_of(found, torch.zeros(len(some), dtype=torch.long, device=device))  # the first is the right one
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
first, last = (sum(part) / len(part) for part in (losses[: len(losses) // 4], losses[-len(losses) // 4 :]))
print(f"loss of the epochs {first:.3f} -> {last:.3f}; the right text is first for {before:.3f} -> {first_rank():.3f}")
