"""Fine-tunes a classifier with transformers' Trainer, in batches of similar lengths and with gradient accumulation."""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import fasttx
from fasttx.data import LengthBucketSampler, PackingCollator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="has train.txt and dev.txt")
parser.add_argument("--tiny", action="store_true", help="32 texts only")
args = parser.parse_args()
torch.manual_seed(0)


class BucketTrainer(Trainer):
    def get_train_dataloader(self):
        lengths = [len(row["input_ids"]) for row in self.train_dataset]
        sampler = LengthBucketSampler(lengths, batch_size=8, num_replicas=self.args.world_size)
        loader = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


tokenizer = AutoTokenizer.from_pretrained(args.model, model_max_length=256)
lines = {name: (args.data / name).read_text(encoding="utf-8").splitlines() for name in ("train.txt", "dev.txt")}
labels = sorted({line.split("\t")[0] for line in lines["train.txt"]})
rows = {}
for name, part in lines.items():
    pairs = [line.split("\t", 1) for line in part[: 32 if args.tiny else None]]
    rows[name] = [{**tokenizer(text, truncation=True), "label": labels.index(label)} for label, text in pairs]

model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(labels))
fasttx.patch(model)
trainer = BucketTrainer(
    model,
    TrainingArguments("trainer", num_train_epochs=3, learning_rate=2e-4, gradient_accumulation_steps=2, report_to=[]),
    data_collator=PackingCollator(DataCollatorWithPadding(tokenizer)),
    train_dataset=rows["train.txt"],
    eval_dataset=rows["dev.txt"],
    compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()},
)
before = trainer.evaluate()
seconds = trainer.train().metrics["train_runtime"]
after = trainer.evaluate()
trainer.save_model()
print(f"loss {before['eval_loss']:.3f} -> {after['eval_loss']:.3f} in {seconds:.0f} s", end="; ")
print(f"accuracy {before['eval_accuracy']:.3f} -> {after['eval_accuracy']:.3f}")
