"""How fast do our networks train, against pytorchcv's as its users run them?

    python benchmarks/training_speed.py --out records/speed/NAME.json

One run, interleaved: each round times every system once, so that a noisy machine disturbs all alike; medians of rounds.
A timed step is a whole one: forward, loss, backward, update. Ours includes drawing, normalising and augmenting its
batch; the peer is given its batch ready.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import preresnet
from preresnet import device as devices
from preresnet.data.augment import fit
from preresnet.data.loaders import TrainingBatches
from preresnet.data.sets import Images
from preresnet.train.optim import set_lr, sgd, update

PEERS = {"resnet20-preact": "preresnet20_cifar10", "resnet110-preact": "preresnet110_cifar10"}


def ours(name: str, batch: int, device: torch.device) -> Callable[[], None]:
    """Our training step in ``auto`` precision, on random images."""
    recipe = replace(preresnet.recipe(f"cifar10/{name}"), global_batch=batch)
    model = preresnet.create_model(name, seed=0)
    devices.place(model, device)
    optimizer = sgd(model, recipe.optim)
    set_lr(optimizer, 0.01)
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2_000, 32, 32, 3), dtype=torch.uint8, generator=source)
    labels = torch.randint(0, 10, (2_000,), generator=source)
    images = Images(pixels, labels).to(device)
    batches = TrainingBatches(images, recipe.data, fit(pixels, recipe.data).to(device), batch, seed=0)
    precision = devices.resolve(recipe.precision, device)
    step = iter(range(10**9))

    def run() -> None:
        update(model, optimizer, *batches.at(next(step)), recipe.norm_batch, precision)

    return run


def peer(name: str, batch: int, device: torch.device) -> Callable[[], None]:
    """pytorchcv's network as its users run it: float32, default layout, PyTorch's SGD as it comes."""
    from pytorchcv.model_provider import get_model  # pyright: ignore[reportMissingImports] - an extra

    model = get_model(PEERS[name]).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(batch, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (batch,), device=device)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def measure(name: str, batch: int, rounds: int, steps: int, device: torch.device) -> dict[str, object]:
    """Images a second of both, as medians, and the ratio of the medians."""
    systems = {"preresnet": ours(name, batch, device), "pytorchcv": peer(name, batch, device)}
    speeds: dict[str, list[float]] = {system: [] for system in systems}
    for number in range(rounds + 1):
        for system, run in systems.items():
            begin = time.perf_counter()
            for _ in range(steps):
                run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:  # the first round warms up
                speeds[system].append(batch * steps / (time.perf_counter() - begin))
    medians = {system: statistics.median(values) for system, values in speeds.items()}
    return {
        "network": name,
        "batch": batch,
        "images_per_s": {system: round(value, 1) for system, value in medians.items()},
        "rounds": {system: [round(value, 1) for value in values] for system, values in speeds.items()},
        "ratio": round(medians["preresnet"] / medians["pytorchcv"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each system in a round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="write the record here too")
    arguments = parser.parse_args()
    device = devices.choose(arguments.device)
    record = {
        "command": shlex.join(["python", "benchmarks/training_speed.py", *sys.argv[1:]]),
        "device": devices.describe(device),
        "precision": {"preresnet": devices.resolve("auto", device), "pytorchcv": "float32"},
        "versions": {
            "preresnet": preresnet.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "rows": [
            measure(name, arguments.batch, arguments.rounds, arguments.steps, device) for name in arguments.networks
        ],
    }
    text = json.dumps(record, indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
