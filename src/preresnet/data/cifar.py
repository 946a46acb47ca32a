"""CIFAR-10 and CIFAR-100: found or downloaded, checked against published digests, and read."""

import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from preresnet.spec import UserError

Labelled = tuple[Tensor, Tensor]
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    """One official form of a data set: its folder, its files, and how to know that each is whole."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    digests: dict[str, str]
    is_binary: bool


# MD5 of the authors' python files: what torchvision checks too. For the binary files: SHA-256 of their records in
# sorted order, computed from the verified python files (the same records), so that it holds in any order of records.
_LAYOUTS: dict[str, tuple[_Layout, _Layout]] = {
    "cifar10": (
        _Layout(
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{number}" for number in range(1, 6)),
            test=("test_batch",),
            names="batches.meta",
            digests={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
                "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
            },
            is_binary=False,
        ),
        _Layout(
            folder="cifar-10-batches-bin",
            train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            test=("test_batch.bin",),
            names="batches.meta.txt",
            digests={
                "data_batch_1.bin": "52196d128f71a6fce0a49c24f26c7b6e3f429964875b2826cb2871233f3d2e61",
                "data_batch_2.bin": "ad8381f4eed3c0822ee3cf93bd4b23d9fb2c67cb40e59a8bcd0e3e08a0ee5877",
                "data_batch_3.bin": "f5f46aa775410e81bfc53c20903abae6dc3921ee108d0f4c651b91b3bd3e3093",
                "data_batch_4.bin": "da7fa787fd52b27dbf6c209c432ce10c6e7b13b373f34eb12f33c5a25858e0a4",
                "data_batch_5.bin": "ae988bba5d6037ab593651b86298f64ef37d53583fa0a604c8d775465f7fef2f",
                "test_batch.bin": "f1bbb931260cda782c84c1948c82d910e2c193cb1d56756293f445027090946b",
            },
            is_binary=True,
        ),
    ),
    "cifar100": (
        _Layout(
            folder="cifar-100-python",
            train=("train",),
            test=("test",),
            names="meta",
            digests={
                "train": "16019d7e3df5f24257cddd939b257f8d",
                "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
                "meta": "7973b15100ade9c7d40fb424638fde48",
            },
            is_binary=False,
        ),
        _Layout(
            folder="cifar-100-binary",
            train=("train.bin",),
            test=("test.bin",),
            names="fine_label_names.txt",
            digests={
                "train.bin": "e087818905fce27ff63616d8f344858809aab7e66060ba0e155a3bb18453ec1e",
                "test.bin": "b8278c7d1bf36d32ce3e9f2a02eb2c80c9458dcf9a15571d082434cc68f5f5ce",
            },
            is_binary=True,
        ),
    ),
}


def read(name: str, root: Path | None) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """Classes, training images and test images of ``cifar10`` or ``cifar100``.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

    Args:
        name: ``cifar10`` or ``cifar100`` (fine labels).
        root: folder with the official python or binary folder in it (or that folder itself); None uses, and fills by
            torchvision's verified download, ``~/.cache/preresnet`` (``$XDG_CACHE_HOME``).

    Returns:
        Names by label; (n, 32, 32, 3) uint8 with (n,) int64, twice: 50,000 and 10,000 images.

    Raises:
        ValueError: a file is missing, truncated or altered; it is named, with what to do.
    """
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preresnet"
        _download(name, root)
    folder, layout = _find(name, root)
    names = _names(folder, layout)
    return names, _split(folder, layout, layout.train), _split(folder, layout, layout.test)


def _find(name: str, root: Path) -> tuple[Path, _Layout]:
    for layout in _LAYOUTS[name]:
        for folder in (root / layout.folder, root):
            if (folder / layout.train[0]).is_file() and (folder == root / layout.folder or root.name == layout.folder):
                return folder, layout
        if (root / layout.folder).is_dir():  # present but incomplete: say which file is missing
            return root / layout.folder, layout
    python, binary = (layout.folder for layout in _LAYOUTS[name])
    raise UserError(
        f"no {name} under {root}: neither {root / python} nor {root / binary} is there. "
        "Give the folder that holds one of them, or leave out --data-root to download it"
    )


def _split(folder: Path, layout: _Layout, files: tuple[str, ...]) -> Labelled:
    read_one = _read_binary if layout.is_binary else _read_python
    pixels, labels = zip(*(read_one(folder / file, layout) for file in files), strict=True)
    planes = torch.from_numpy(np.concatenate(pixels)).view(-1, 3, 32, 32)
    return planes.permute(0, 2, 3, 1).contiguous(), torch.from_numpy(np.concatenate(labels))


def _read_python(path: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    content = pickle.loads(_verified(path, layout), encoding="latin1")  # noqa: S301 - only after its MD5 was checked
    labels = content.get("labels", content.get("fine_labels"))
    return content["data"], np.asarray(labels, dtype=np.int64)


def _read_binary(path: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    data = _bytes(path)
    label_bytes = 2 if "100" in layout.folder else 1  # CIFAR-100: coarse, then fine
    record = label_bytes + PIXELS
    if len(data) == 0 or len(data) % record:
        raise _damaged(path, f"{len(data):,} bytes is not a whole number of records of {record:,}: it is truncated")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
    found = hashlib.sha256(b"".join(sorted(row.tobytes() for row in records))).hexdigest()
    if found != layout.digests[path.name]:
        raise _damaged(path, f"its {len(records):,} records are not the published ones: it is truncated or altered")
    return records[:, label_bytes:].copy(), records[:, label_bytes - 1].astype(np.int64)


def _names(folder: Path, layout: _Layout) -> tuple[str, ...]:
    path = folder / layout.names
    if layout.is_binary:
        return tuple(_bytes(path).decode().split())
    meta = pickle.loads(_verified(path, layout), encoding="latin1")  # noqa: S301 - only after its MD5 was checked
    return tuple(meta.get("label_names", meta.get("fine_label_names")))


def _verified(path: Path, layout: _Layout) -> bytes:
    data = _bytes(path)
    found, published = hashlib.md5(data, usedforsecurity=False).hexdigest(), layout.digests[path.name]
    if found != published:
        raise _damaged(path, f"its MD5 is {found}, published is {published}: it is truncated or altered")
    return data


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}. Restore it from the official archive, or leave out "
            "--data-root to download the data set"
        ) from None


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: {what}. Delete it and unpack the official archive again, or leave out --data-root to download it"
    )


def _download(name: str, root: Path) -> None:
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):  # of the processes of a run one downloads
            kind(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"could not download {name} to {root}: {error}. Check the connection, or get the official archive by "
            "other means and give the folder it is unpacked in as --data-root"
        ) from None
