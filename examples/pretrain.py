"""Pretrains BERT from scratch by masked words and by whether one sentence follows another, on Python's help texts."""

import argparse
import random
import re
from pydoc_data.topics import topics

import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, DataCollatorForLanguageModeling

import fasttx
from fasttx.data import LengthBucketSampler, PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="bert-base-uncased", help="whose size and tokenizer to take")
parser.add_argument("--tiny", action="store_true", help="a small model, 10 topics")
args = parser.parse_args()
torch.manual_seed(0)
draw = random.Random(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=128)
texts = [" ".join(text.split()) for text in topics.values()][: 10 if args.tiny else None]
documents = [re.split(r"(?<=[.:]) (?=[A-Z])", text) for text in texts]
everything = [sentence for sentences in documents for sentence in sentences]
rows = []
for sentences in documents:
    for first, second in zip(sentences, sentences[1:]):
        other = draw.random() < 0.5
        tokens = tokenizer(first, draw.choice(everything) if other else second, truncation=True)
        rows.append({**tokens, "next_sentence_label": int(other)})
collator = PackingCollator(DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15))
sampler = LengthBucketSampler([len(row["input_ids"]) for row in rows], max_tokens=2048)
loader = DataLoader(rows, batch_sampler=sampler, collate_fn=collator)

small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
config = BertConfig.from_pretrained(args.model, **(small if args.tiny else {}))
model = BertForPreTraining(config).to(device).train()
fasttx.patch(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3 if args.tiny else 1e-4)
means = []
for epoch in range(3):
    sampler.set_epoch(epoch)
    losses = []
    for batch in loader:
        loss = model(**batch.to(device)).loss  # of the words and of the order
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    means.append(sum(losses) / len(losses))
    print(f"epoch {epoch}: loss {means[-1]:.3f}")
print(f"loss of the epochs {means[0]:.3f} -> {means[-1]:.3f} on {len(rows)} pairs")
