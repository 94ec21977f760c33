"""Searches passages by meaning with sentence-transformers, and compares with the unpatched model."""

import argparse
import timeit
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

import fasttx

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("query", nargs="?", default="How do I catch several exceptions at once?")
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--texts", type=Path, default=Path(__file__).parent / "data" / "dev.txt", help="label, tab, text")
parser.add_argument("--tiny", action="store_true", help="32 texts only")
args = parser.parse_args()

lines = args.texts.read_text(encoding="utf-8").splitlines()[: 32 if args.tiny else None]
texts = [line.split("\t", 1)[1] for line in lines]
encoder = SentenceTransformer(args.model)


def encode(texts):
    return encoder.encode(texts, batch_size=32, convert_to_tensor=True, normalize_embeddings=True).cpu()


plain = encode(texts)
plain_seconds = min(timeit.repeat(lambda: encode(texts), number=1, repeat=3))
fasttx.patch(encoder)
vectors = encode(texts)
seconds = min(timeit.repeat(lambda: encode(texts), number=1, repeat=3))

scores = vectors @ encode([args.query])[0]
print(args.query)
for index in torch.topk(scores, 3).indices.tolist():
    print(f"  {scores[index]:.2f}  {texts[index][:100]}")
print(f"{len(texts)} texts in {seconds:.2f} s, unpatched in {plain_seconds:.2f} s", end="; ")
print(f"smallest cosine between the two {(vectors * plain).sum(-1).min():.6f}")
