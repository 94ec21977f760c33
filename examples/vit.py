"""Trains an image classifier (ViT) to tell the direction of stripes in noise."""

import argparse
import math

import torch
from transformers import ViTConfig, ViTForImageClassification

import fasttx

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="google/vit-base-patch16-224-in21k")
parser.add_argument("--tiny", action="store_true", help="a small model of its own, small images, 60 steps")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

if args.tiny:
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=4, **size))
else:
    model = ViTForImageClassification.from_pretrained(args.model, num_labels=4)
model = model.to(device)
print(fasttx.patch(model))


def stripes(count):
    """Images (count, 3, height, width) of stripes at 0, 45, 90 or 135 degrees, and which it is."""
    labels = torch.randint(4, (count,))
    angle, phase = labels[:, None, None] * math.pi / 4, torch.rand(count, 1, 1) * 2 * math.pi
    y, x = torch.meshgrid(*[torch.linspace(0, 4, model.config.image_size)] * 2, indexing="ij")
    wave = torch.sin(2 * math.pi * (x * angle.cos() + y * angle.sin()) + phase)
    images = wave[:, None] + 0.5 * torch.randn(count, 3, *x.shape)
    return images.to(device), labels.to(device)


optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3 if args.tiny else 3e-5)
losses = []
model.train()
for _ in range(60 if args.tiny else 100):
    images, labels = stripes(16)
    loss = model(pixel_values=images, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

images, labels = stripes(64)
with torch.inference_mode():
    right = model.eval()(pixel_values=images).logits.argmax(-1) == labels
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; accuracy {right.float().mean():.3f} on {len(labels)} new images")
