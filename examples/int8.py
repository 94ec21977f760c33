"""Keeps a model's weights as int8, and says what that saves and how near its embeddings stay."""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

import fasttx

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--texts", type=Path, default=Path(__file__).parent / "data" / "dev.txt", help="label, tab, text")
parser.add_argument("--tiny", action="store_true", help="16 texts only")
args = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"

lines = args.texts.read_text(encoding="utf-8").splitlines()[: 16 if args.tiny else None]
texts = [line.split("\t", 1)[1] for line in lines]
tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=256)
model = AutoModel.from_pretrained(args.model).to(device).eval()
fasttx.patch(model)


@torch.inference_mode()
def embed():
    found = []
    for at in range(0, len(texts), 16):
        batch = tokenizer(texts[at : at + 16], padding=True, truncation=True, return_tensors="pt").to(device)
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(found), dim=-1)


def megabytes(module):
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values()) / 1e6


exact, layers, whole = embed(), megabytes(model.encoder), megabytes(model)
print(fasttx.quantize(model))
rounded = embed()
model.save_pretrained("int8")  # from_pretrained loads it, after `import fasttx.models`
cosine = (exact * rounded).sum(-1)
print(
    f"layers {layers:.1f} -> {megabytes(model.encoder):.1f} MB, model {whole:.1f} -> {megabytes(model):.1f} MB",
    end="; ",
)
print(f"cosine to float32 {cosine.mean():.4f}, at least {cosine.min():.4f}")
