"""A recipe for photographs beside torchvision's resnet18 as its reference script trains it, each for as many minutes.

The reference: float32, batches of 32, SGD with momentum 0.9 and weight decay 1e-4, a rate of 0.1 divided by 10 after
each third of the epochs (its 90 epochs, shortened to those that the minutes hold), crops of 224 pixels of 8 to 100 % of
the area, mirrored by half; tested on centre crops of 224 of a shorter side of 256. Both are measured on the images in
DIR/val at the last step. The record is written after every run; the same command goes on with it.

    python benchmarks/photographs.py DIR --minutes 30 --seeds 3 --runs runs --out records/photographs/half-an-hour.json
"""

import argparse
import json
import math
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import preresnet
from preresnet import device as devices
from preresnet.data import streaming

BATCH, CROP, SIDE, LR = 32, 224, 256, 0.1


def ours(root: Path, recipe: str, minutes: float, seed: int, out: Path) -> dict[str, Any]:
    """A run of ours, as its command does it."""
    command = ["preresnet", "train", recipe, "--data-root", str(root), "--minutes", str(minutes), "--seed", str(seed)]
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command, "--out", str(out), "--resume"], check=True)  # noqa: S603
    found = json.loads((out / "result.json").read_text())
    kept = {name: found[name] for name in ("error_pct", "steps", "num_images", "precision", "recipe")}
    return {**kept, "seconds": round(time.perf_counter() - begin, 1)}


def reference(root: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Torchvision's network, trained as its reference script does."""
    begin = time.perf_counter()
    torch.manual_seed(seed)
    normal = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(streaming.MEAN, streaming.STD)]
    crops = [v2.RandomResizedCrop(CROP, antialias=True), v2.RandomHorizontalFlip()]
    training = ImageFolder(str(root / "train"), v2.Compose([*crops, *normal]))
    testing = ImageFolder(
        str(root / "val"), v2.Compose([v2.Resize(SIDE, antialias=True), v2.CenterCrop(CROP), *normal])
    )
    loader = DataLoader(training, BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True)
    test = DataLoader(testing, BATCH, num_workers=1)
    model = torchvision.models.resnet18(num_classes=len(training.classes))
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=1e-4)
    loss = nn.CrossEntropyLoss()

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    started = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    batches = iter(loader)
    for _ in range(3):
        step(*next(batches))
    timed, count = time.perf_counter(), 0
    while time.perf_counter() - timed < 20:
        step(*next(batches))
        count += 1
    seconds = (time.perf_counter() - timed) / count
    model.load_state_dict(started)
    optimizer.state.clear()
    evaluation = seconds * len(testing) / BATCH / 3  # forward alone
    left = 60 * minutes - (time.perf_counter() - begin) - evaluation
    epochs = max(1, int(left / (seconds * len(loader))))
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = LR / 10 ** math.floor(3 * epoch / epochs)
        model.train()
        for x, y in loader:
            step(x, y)
        print(f"torchvision, seed {seed}: epoch {epoch + 1} of {epochs}", file=sys.stderr, flush=True)
    model.eval()
    with torch.inference_mode():
        wrong = sum(int((model(x).argmax(1) != y).sum()) for x, y in test)
    return {
        "error_pct": 100 * wrong / len(testing),
        "epochs": epochs,
        "steps": epochs * len(loader),
        "num_images": len(testing),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def record(asked: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What has been found so far."""
    errors = {name: [run["error_pct"] for run in runs] for name, runs in found.items() if runs}
    return {
        "command": shlex.join(
            ["python", "benchmarks/photographs.py", "DIR"]
            + ["RUNS" if word == str(asked.runs) else word for word in sys.argv[2:]]
        ),
        "recipe": asked.recipe,
        "minutes": asked.minutes,
        "error_pct": errors,
        "median": {name: median(ones) for name, ones in errors.items()},
        "mean": {name: round(mean(ones), 2) for name, ones in errors.items()},
        "std": {name: round(stdev(ones), 2) if len(ones) > 1 else None for name, ones in errors.items()},
        "runs": found,
        "device": devices.describe(torch.device("cpu")),
        "versions": {
            "preresnet": preresnet.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
    }


def main() -> None:
    """Train what is missing, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--recipe", default="images/resnet18-preact")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.runs.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {"preresnet": [], "torchvision": []}
    if asked.out.is_file():
        found = json.loads(asked.out.read_text())["runs"]
    for name, runs in found.items():
        for seed in range(len(runs), asked.seeds):
            if name == "preresnet":
                runs.append(ours(asked.root, asked.recipe, asked.minutes, seed, asked.runs / f"seed{seed}"))
            else:
                runs.append(reference(asked.root, asked.minutes, seed))
            asked.out.write_text(json.dumps(record(asked, found), indent=1) + "\n")
    print(json.dumps({name: record(asked, found)[name] for name in ("error_pct", "median", "mean", "std")}, indent=1))


if __name__ == "__main__":
    main()
