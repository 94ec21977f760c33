"""Trains SPLADE, sparse vectors over the vocabulary: titles of Python's help topics have to find their passages."""

import argparse
from pydoc_data.topics import topics

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import fasttx

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="distilbert/distilbert-base-uncased")
parser.add_argument("--tiny", action="store_true", help="8 topics only")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

pairs = []
for text in sorted(topics.values())[: 8 if args.tiny else None]:
    title, *passages = [" ".join(part.split()) for part in text.split("\n\n")]
    pairs.append((title.strip("* "), max(passages, key=len)))
tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=64)
model = AutoModelForMaskedLM.from_pretrained(args.model).to(device)
fasttx.patch(model)  # without labels the logits of all tokens are there


def vectors(texts):
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
    weights = torch.log1p(torch.relu(model(**batch).logits)) * batch["attention_mask"].unsqueeze(-1)
    return weights.amax(1)


optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
loss_of = fasttx.nn.CrossEntropyLoss()
means = []
for _ in range(5):
    losses = []
    for some in torch.randperm(len(pairs)).split(8):
        titles, passages = (vectors(list(texts)) for texts in zip(*[pairs[i] for i in some]))
        scores = titles @ passages.T / 10  # the other passages of the batch are the wrong ones
        floating = 1e-3 * sum(part.abs().mean(0).square().sum() for part in (titles, passages))  # FLOPS: few words
        loss = loss_of(scores, torch.arange(len(some), device=device)) + floating
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    means.append(sum(losses) / len(losses))
with torch.inference_mode():
    passages = torch.cat([vectors([passage]) for _, passage in pairs])
    found = torch.cat([vectors([title]) for title, _ in pairs]) @ passages.T
right = (found.argmax(1).cpu() == torch.arange(len(pairs))).float().mean()
print(f"loss of the epochs {means[0]:.3f} -> {means[-1]:.3f}; {right:.3f} of the titles find their passage", end="; ")
print(f"{(passages > 0).float().sum(1).mean():.0f} of {passages.shape[1]} words have a weight")
