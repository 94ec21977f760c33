"""Makes a classifier smaller: a student of half its layers, half of its weights pruned, the rest as int8.

    python examples/compress/compress.py DIR --teacher DIR --steps distil,prune,int8

The teacher is a classifier with BERT's layers that was fine-tuned on the same labels (examples/fine_tune.py saves one);
without --teacher one is fine-tuned here. DIR gets the small model, its tokenizer, and a model card with the table.
"""

from __future__ import annotations

import argparse
import copy
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import fasttx
from fasttx import nn
from fasttx.data import PackingCollator

STEPS = {
    "distil": "half of the layers, which learned from the teacher's logits and last hidden states, and from the labels",
    "prune": "{share:.0%} of the weights of the encoder's linear layers are 0, the rest was fine-tuned (fasttx.prune)",
    "int8": "the encoder's linear layers are int8 (fasttx.quantize); `import fasttx.models` before you load them",
}
CARD = """# A compressed classifier

Labels: {labels}. Made by `examples/compress/compress.py` in these steps:

{steps}

{table}

MB is the size of the tensors, and of the same packed (zlib). Texts a second of {clock} and accuracy are of the {n}
held-back texts, on {device}.
"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, help="for the small model")
parser.add_argument("--teacher", help="folder of a fine-tuned classifier; without it, --model is fine-tuned")
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="gives the tokenizer, too")
parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "data", help="has train.txt and dev.txt")
parser.add_argument("--steps", default=",".join(STEPS), help="some of these, in this order")
parser.add_argument("--share", type=float, default=0.5, help="of the weights, to prune")
parser.add_argument("--epochs", type=int, default=3, help="of each training")
parser.add_argument("--tiny", action="store_true", help="32 texts only")
args = parser.parse_args()
steps = args.steps.split(",")
if steps != [step for step in STEPS if step in steps]:
    parser.error(f"--steps: got {args.steps}; allowed are some of {','.join(STEPS)}, in this order")
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
clock = "processor time" if device == "cpu" else "time"  # which other programs on the machine do not change
seconds_now = time.process_time if device == "cpu" else time.perf_counter

tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=256)
lines = {name: (args.data / name).read_text(encoding="utf-8").splitlines() for name in ("train.txt", "dev.txt")}
labels = sorted({line.split("\t")[0] for line in lines["train.txt"]})
loaders = []
for part in lines.values():
    pairs = [line.split("\t", 1) for line in part[: 32 if args.tiny else None]]
    rows: Any = [{**tokenizer(text, truncation=True), "label": labels.index(label)} for label, text in pairs]
    loaders.append(DataLoader(rows, 16, shuffle=True, collate_fn=PackingCollator(DataCollatorWithPadding(tokenizer))))
train, dev = loaders
last: dict[Any, torch.Tensor] = {}  # the last hidden states of a base model; asking for all of them would cost padding
distilled, alike = nn.DistillationLoss(temperature=2.0, alpha=0.5), nn.HiddenStateLoss("cosine")
table = ["| | MB | MB packed | texts a second | accuracy |", "|---|---|---|---|---|"]


def keep_last(model: Any) -> None:
    model.base_model.register_forward_hook(lambda base, _, out: last.update({base: out.last_hidden_state}))


def fit(model: Any, teacher: Any = None, share: float | None = None) -> None:
    """Trains on the labels, and on what a teacher says of the same batch; prunes a little more before each epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for epoch in range(args.epochs):
        if share is not None:
            fasttx.prune(model, share * (1 - (1 - (epoch + 1) / args.epochs) ** 3))
        for batch in train:
            out = model.train()(**batch.to(device))
            loss = out.loss
            if teacher is not None:
                with torch.no_grad():
                    wanted = teacher(**batch).logits
                hidden = (last[each.base_model] for each in (model, teacher))
                loss = distilled(out.logits, wanted, batch["labels"]) + alike(*hidden, batch["attention_mask"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.inference_mode()
def measure(model: Any, name: str) -> None:
    """Adds a row to the table."""
    tensors = [tensor.detach().cpu().contiguous() for tensor in model.state_dict().values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    packed = sum(len(zlib.compress(tensor.flatten().view(torch.uint8).numpy(), 1)) for tensor in tensors)
    batches, seconds = [batch.to(device) for batch in dev], float("inf")
    for _ in range(1 if args.tiny else 3):
        start = seconds_now()
        right = torch.cat([model.eval()(**batch).logits.argmax(-1) == batch["labels"] for batch in batches]).cpu()
        seconds = min(seconds, seconds_now() - start)
    speed, accuracy = len(right) / seconds, right.float().mean()
    table.append(f"| {name} | {size / 1e6:.1f} | {packed / 1e6:.1f} | {speed:.0f} | {accuracy:.3f} |")
    print(table[-1], flush=True)


model = AutoModelForSequenceClassification.from_pretrained(args.teacher or args.model, num_labels=len(labels)).to(
    device
)
model.config.id2label, model.config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
fasttx.patch(model)
if args.teacher is None:
    fit(model)
measure(model, "teacher")
teacher = copy.deepcopy(model)
for each in (teacher, model):
    keep_last(each)
for step in steps:
    if step == "distil":
        layers = model.base_model.encoder.layer
        del layers[1::2]  # a student begins with every second layer of its teacher
        model.config.num_hidden_layers = len(layers)
        fit(model, teacher)
    elif step == "prune":
        fit(model, teacher, args.share)
        fasttx.prune(model, finish=True)
    else:
        fasttx.quantize(model)
    measure(model, step)
model.save_pretrained(args.folder)
tokenizer.save_pretrained(args.folder)
done = "\n".join(f"- {step}: {STEPS[step].format(share=args.share)}" for step in steps)
facts = {"labels": ", ".join(labels), "steps": done, "table": "\n".join(table)}
facts |= {"n": len(dev.dataset), "device": device, "clock": clock}
(args.folder / "README.md").write_text(CARD.format(**facts), encoding="utf-8")
