"""Translates with two BERTs: HTML's names of characters, letter by letter, into Unicode's names of them."""

import argparse
import random
import unicodedata
from html.entities import name2codepoint

import torch
from transformers import AutoTokenizer, EncoderDecoderModel

import fasttx

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--tiny", action="store_true", help="one layer each, 16 names")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

pairs = [(" ".join(name), unicodedata.name(chr(code), "").lower()) for name, code in sorted(name2codepoint.items())]
random.Random(0).shuffle(pairs)
train, dev = (pairs[:16], pairs[:4]) if args.tiny else (pairs[32:], pairs[:32])
tokenizer = AutoTokenizer.from_pretrained(args.model)
layers = {"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1} if args.tiny else {}
model = EncoderDecoderModel.from_encoder_decoder_pretrained(args.model, args.model, **layers).to(device)
model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = tokenizer.cls_token_id
model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
model.generation_config.eos_token_id = tokenizer.sep_token_id
print(fasttx.patch(model))

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
means = []
model.train()
for _ in range(10 if args.tiny else 30):
    losses = []
    for some in torch.randperm(len(train)).split(16):
        sources, targets = zip(*[train[i] for i in some])
        batch = tokenizer(list(sources), padding=True, return_tensors="pt").to(device)
        wanted = tokenizer(list(targets), padding=True, return_tensors="pt").to(device)
        labels = wanted["input_ids"][:, 1:].masked_fill(wanted["attention_mask"][:, 1:] == 0, -100)
        loss = model(batch["input_ids"], batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    means.append(sum(losses) / len(losses))

batch = tokenizer([source for source, _ in dev], padding=True, return_tensors="pt").to(device)
out = model.eval().generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=16)
guesses = tokenizer.batch_decode(out, skip_special_tokens=True)
for (source, target), guess in list(zip(dev, guesses))[:3]:
    print(f"{source.replace(' ', '')}: {guess} ({target})")
right = sum(guess.split() == target.split() for guess, (_, target) in zip(guesses, dev)) / len(dev)
print(f"loss of the epochs {means[0]:.3f} -> {means[-1]:.3f}; {right:.3f} of {len(dev)} names are exact")
