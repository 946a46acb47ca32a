"""Images a second of our loading of training crops beside torchvision's reference pipeline, in interleaved rounds.

Both read the same files with as many worker processes and make the same kind of crops: random area and aspect ratio,
mirrored by half, TrivialAugment, some of them partly erased, normalised. Torchvision's pipeline is that of its
reference: ImageFolder, DataLoader, transforms.v2 on PIL images, random erasing and normalisation in the workers.

    python benchmarks/loading.py DIR --workers 1 --size 128 --out records/photographs/loading.json
"""

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import preresnet
from preresnet import device as devices
from preresnet.data import loaders, own_images, streaming
from preresnet.recipe import Photographs


def ours(root: Path, spec: Photographs, batch: int, workers: int) -> Callable[[], Iterator[torch.Tensor]]:
    """Batches as a run of `Photographs` takes them."""
    data = own_images.read(spec, root)
    made = loaders.training_batches(
        data.train, spec, streaming.normalisation(), batch, 0, workers=workers, classes=data.classes
    )

    def run() -> Iterator[torch.Tensor]:
        step = 0
        while True:
            yield made.at(step)[0]
            step += 1

    return run


def torchvisions(root: Path, spec: Photographs, batch: int, workers: int) -> Callable[[], Iterator[torch.Tensor]]:
    """Batches as torchvision's reference scripts take them, without end."""
    changes: list[Any] = [v2.RandomResizedCrop(spec.image_size, scale=spec.area, antialias=True)]
    changes.append(v2.RandomHorizontalFlip())
    if spec.policy == "trivial":
        changes.append(v2.TrivialAugmentWide())
    changes += [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(streaming.MEAN, streaming.STD)]
    if spec.erasing:
        changes.append(v2.RandomErasing(p=spec.erasing))
    train = root / "train" if (root / "train").is_dir() else root
    loader = DataLoader(
        ImageFolder(str(train), v2.Compose(changes)), batch, shuffle=True, num_workers=workers, drop_last=True
    )

    def run() -> Iterator[torch.Tensor]:
        while True:
            for x, _ in loader:
                yield x

    return run


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--policy", default="trivial")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    spec = Photographs(
        name="images", image_size=asked.size, test_crops=(asked.size,), test_sides=(asked.size,), policy=asked.policy
    )
    given = (asked.root, spec, asked.batch, asked.workers)
    streams = {"preresnet": ours(*given)(), "torchvision": torchvisions(*given)()}
    for stream in streams.values():  # workers start
        for _ in range(3):
            next(stream)
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(asked.rounds):
        for name, stream in streams.items():
            for _ in range(2 + 2 * asked.workers):  # read ahead while the other was measured
                next(stream)
            begin, images = time.perf_counter(), 0
            while time.perf_counter() - begin < asked.seconds:
                images += len(next(stream))
            rates[name].append(images / (time.perf_counter() - begin))
    ratios = [one / other for one, other in zip(*rates.values(), strict=True)]
    record = {
        "command": shlex.join(["python", "benchmarks/loading.py", "DIR", *sys.argv[2:]]),
        "images": len(list(asked.root.rglob("*.jpg"))),
        "workers": asked.workers,
        "image_size": asked.size,
        "policy": asked.policy,
        "images_per_s": {name: round(median(found), 1) for name, found in rates.items()},
        "ratio": round(median(ratios), 3),
        "rounds": {name: [round(one, 1) for one in found] for name, found in rates.items()},
        "device": devices.describe(torch.device("cpu")),
        "versions": {
            "preresnet": preresnet.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(record, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
