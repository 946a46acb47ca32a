"""Sums over the training images of CIFAR, from which any normalisation follows without them, and the classes' names.

python benchmarks/cifar_sums.py ROOT src/preresnet/data/cifar.npz
"""

import sys
from pathlib import Path

import numpy as np

from preresnet.data import cifar


def main(root: Path, out: Path) -> None:
    """Read both sets, and write the file."""
    found = {}
    for name in ("cifar10", "cifar100"):
        classes, (pixels, _), _ = cifar.read(name, root)
        values = pixels.numpy().astype(np.uint64)
        found[f"{name}_sums"] = values.sum(0).astype(np.uint32)
        found[f"{name}_squares"] = (values * values).sum((0, 1, 2))
        found[f"{name}_classes"] = np.array(classes)
    np.savez_compressed(out, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
