"""Trains a speech encoder (HuBERT), whose attention alone fasttx replaces, to tell high tones from low ones."""

import argparse
import math

import torch
from transformers import HubertConfig, HubertForSequenceClassification

import fasttx.models  # noqa: F401  registers the attention "fasttx"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="facebook/hubert-base-ls960")
parser.add_argument("--tiny", action="store_true", help="a small model of its own, 40 steps")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

if args.tiny:
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    front = {"conv_dim": [32] * 3, "conv_kernel": [10, 8, 4], "conv_stride": [5, 4, 4]}
    rest = {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    model = HubertForSequenceClassification(HubertConfig(apply_spec_augment=False, **size, **front, **rest))
else:
    model = HubertForSequenceClassification.from_pretrained(args.model, num_labels=2)
model = model.to(device)
model.set_attn_implementation("fasttx")


def tones(count, rate=16000):
    """Sounds (count, samples) of up to a quarter of a second, their mask, and 1 where the tone is above 600 Hz."""
    labels = torch.randint(2, (count,))
    pitch = torch.where(labels == 1, 800.0, 400.0) * (0.8 + 0.4 * torch.rand(count))
    time = torch.arange(rate // 4) / rate
    mask = time < 0.1 + 0.15 * torch.rand(count, 1)
    sounds = (torch.sin(2 * math.pi * pitch[:, None] * time) + 0.1 * torch.randn(count, len(time))) * mask
    return {"input_values": sounds.to(device), "attention_mask": mask.long().to(device), "labels": labels.to(device)}


optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3 if args.tiny else 3e-5)
losses = []
model.train()
for _ in range(40 if args.tiny else 100):
    loss = model(**tones(8)).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

batch = tones(32)
with torch.inference_mode():
    logits = model.eval()(**batch).logits
    model.set_attn_implementation("sdpa")
    difference = (model(**batch).logits - logits).abs().max()
right = (logits.argmax(-1) == batch["labels"]).float().mean()
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; accuracy {right:.3f}; differs from sdpa by {difference:.1e}")
