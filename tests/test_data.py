import hashlib
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preresnet.data import augment, cifar, digits, sets
from preresnet.data.files import ImageFiles
from preresnet.data.image_set import Images
from preresnet.data.loaders import TrainingBatches, evaluation_batches
from preresnet.data.order import generator
from preresnet.recipe import ImagesInMemory
from preresnet.spec import UserError

RECORDS = 7  # images in each file of the small CIFAR copies below


def resident(images: Images | ImageFiles) -> Images:
    assert isinstance(images, Images)
    return images


def digest_of_records(records: np.ndarray) -> str:
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in records))).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def small_cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A few random images in both official layouts, with the checksums that belong to them."""
    name = request.param
    python, binary = cifar._LAYOUTS[name]
    random = np.random.RandomState(0)
    coarse_and_fine = name == "cifar100"
    md5, sha = {}, {}
    for folder in (python.folder, binary.folder):
        (tmp_path / folder).mkdir()
    for python_file, binary_file in zip(python.train + python.test, binary.train + binary.test, strict=True):
        data = random.randint(0, 256, (RECORDS, 3072), dtype=np.uint8)
        fine = random.randint(0, 10, RECORDS).tolist()
        keys = {"coarse_labels": [1] * RECORDS, "fine_labels": fine} if coarse_and_fine else {"labels": fine}
        content = pickle.dumps({"data": data, **keys})
        (tmp_path / python.folder / python_file).write_bytes(content)
        md5[python_file] = hashlib.md5(content).hexdigest()
        columns = ([np.ones(RECORDS)] if coarse_and_fine else []) + [np.array(fine)]
        records = np.concatenate([np.stack(columns, 1).astype(np.uint8), data], axis=1)
        (tmp_path / binary.folder / binary_file).write_bytes(records.tobytes())
        sha[binary_file] = digest_of_records(records)
    names = [f"class{label}" for label in range(10)]
    meta = pickle.dumps({"fine_label_names" if coarse_and_fine else "label_names": names})
    (tmp_path / python.folder / python.names).write_bytes(meta)
    md5[python.names] = hashlib.md5(meta).hexdigest()
    (tmp_path / binary.folder / binary.names).write_text("\n".join(names) + "\n\n")
    monkeypatch.setitem(cifar._LAYOUTS, name, (replace(python, digests=md5), replace(binary, digests=sha)))
    return name, tmp_path


def test_both_layouts_hold_the_same_images(small_cifar: tuple[str, Path], tmp_path: Path) -> None:
    name, root = small_cifar
    python, binary = (cifar._LAYOUTS[name][kind].folder for kind in (0, 1))
    (root / python).rename(tmp_path / "aside")
    from_binary = cifar.read(name, root)
    (tmp_path / "aside").rename(root / python)
    (root / binary).rename(tmp_path / "aside")
    from_python = cifar.read(name, root)
    assert from_python[0] == from_binary[0] == tuple(f"class{label}" for label in range(10))
    for ours, theirs in zip(from_python[1] + from_python[2], from_binary[1] + from_binary[2], strict=True):
        assert torch.equal(ours, theirs)
    pixels, labels = from_python[1]
    assert pixels.shape[1:] == (32, 32, 3)
    assert pixels.dtype == torch.uint8
    assert len(labels) == RECORDS * len(cifar._LAYOUTS[name][0].train)


def test_pixels_are_planes_of_rows(small_cifar: tuple[str, Path]) -> None:
    name, root = small_cifar
    layout = cifar._LAYOUTS[name][0]
    with open(root / layout.folder / layout.test[0], "rb") as file:
        stored = pickle.load(file)["data"]
    pixels, _ = cifar.read(name, root)[2]
    assert pixels[2, 5, 9, 1] == stored[2, 1 * 1024 + 5 * 32 + 9]


def test_the_folder_itself_is_a_root_too(small_cifar: tuple[str, Path]) -> None:
    name, root = small_cifar
    inside = cifar.read(name, root / cifar._LAYOUTS[name][0].folder)
    assert torch.equal(inside[1][0], cifar.read(name, root)[1][0])


@pytest.mark.parametrize("layout", [0, 1], ids=["python", "binary"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "altered"])
def test_a_damaged_file_is_named(small_cifar: tuple[str, Path], layout: int, harm: str) -> None:
    name, root = small_cifar
    kept, other = cifar._LAYOUTS[name][layout], cifar._LAYOUTS[name][1 - layout]
    (root / other.folder).rename(root / "elsewhere")
    path = root / kept.folder / kept.train[-1]
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(content[:-100])
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*(--data-root|archive)"):
        cifar.read(name, root)


def test_an_empty_root_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cifar-10-batches-py.*cifar-10-batches-bin.*--data-root"):
        cifar.read("cifar10", tmp_path)


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "CIFAR10", unreachable)
    with pytest.raises(ValueError, match=r"could not download cifar10.*no route.*--data-root"):
        cifar.read("cifar10", None)


def test_the_real_cifar10_is_read() -> None:
    root = os.environ.get("PRERESNET_DATA_ROOT")
    if not root or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("PRERESNET_DATA_ROOT names no folder with cifar-10-batches-py")
    classes, (train, train_labels), (test, test_labels) = cifar.read("cifar10", Path(root))
    assert classes[0] == "airplane"
    assert train.shape == (50_000, 32, 32, 3)
    assert test.shape == (10_000, 32, 32, 3)
    assert train_labels.bincount().tolist() == [5_000] * 10
    assert test_labels.bincount().tolist() == [1_000] * 10
    means = train.double().mean((0, 1, 2))  # as published with the authors' own code
    assert torch.allclose(means, torch.tensor([125.3, 123.0, 113.9], dtype=torch.float64), atol=0.1)


def test_digits_split_is_fixed_and_stratified() -> None:
    classes, (train, train_labels), (test, test_labels) = digits.read()
    again = digits.read()
    assert classes == tuple("0123456789")
    assert train.shape == (1437, 8, 8, 1)
    assert test.shape == (360, 8, 8, 1)
    assert torch.equal(train, again[1][0])
    assert train.max() == 255
    assert test_labels.bincount().min() >= 34
    assert test_labels.bincount().max() <= 38
    both = torch.cat([train, test]).flatten(1).tolist()
    labels = torch.cat([train_labels, test_labels])
    from sklearn import datasets

    bunch: Any = datasets.load_digits()
    ink = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).flatten(1).tolist()
    assert sorted(both) == sorted(ink)
    assert len(labels) == 1797


def test_images_are_centred_on_zeros() -> None:
    data = sets.load(ImagesInMemory(name="digits", image_size=13), None)
    plain = digits.read()[1][0]
    assert torch.equal(resident(data.train).pixels[:, 2:10, 2:10], plain)
    assert resident(data.train).pixels.sum() == plain.sum()
    with pytest.raises(ValueError, match="8x8 do not fit image_size=7"):
        sets.load(ImagesInMemory(name="digits", image_size=7), None)


def test_holdout_takes_training_images_only_and_always_the_same() -> None:
    spec = ImagesInMemory(name="digits", image_size=8, holdout=200)
    data, again, whole = sets.load(spec, None), sets.load(spec, None), sets.load(replace(spec, holdout=0), None)
    assert (data.split, whole.split) == ("holdout", "test")
    assert len(data.train) == len(whole.train) - 200
    assert len(data.evaluation) == 200
    assert torch.equal(resident(data.evaluation).pixels, resident(again.evaluation).pixels)
    parts = torch.cat([resident(data.train).pixels, resident(data.evaluation).pixels]).flatten(1).tolist()
    assert sorted(parts) == sorted(resident(whole.train).pixels.flatten(1).tolist())
    with pytest.raises(ValueError, match=r"holdout=2000.*1437 training images"):
        sets.load(replace(spec, holdout=2000), None)


def random_images(n: int, size: int = 6, channels: int = 3) -> Images:
    source = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, size, size, channels), dtype=torch.uint8, generator=source)
    return Images(pixels, torch.arange(n))


def test_per_pixel_mean_is_subtracted() -> None:
    images = random_images(50)
    x = augment.fit(images.pixels, ImagesInMemory(name="cifar10"))(images.pixels)
    assert x.mean(0).abs().max() < 1e-6
    assert torch.allclose(x[1] - x[0], (images.pixels[1].float() - images.pixels[0].float()) / 255, atol=1e-6)


def test_channel_normalisation_has_mean_0_and_std_1() -> None:
    images = random_images(50)
    x = augment.fit(images.pixels, ImagesInMemory(name="cifar10", normalise="channel_mean_std"))(images.pixels)
    assert x.mean((0, 1, 2)).abs().max() < 1e-5
    assert (x.std((0, 1, 2)) - 1).abs().max() < 1e-3


def test_crops_and_mirrors_are_what_was_drawn() -> None:
    spec = ImagesInMemory(name="cifar10", pad=2)
    x = torch.randn(20, 6, 6, 3)
    choices = augment.random_choices(20, spec, torch.Generator().manual_seed(3))
    assert choices.mirrored.any()
    assert not choices.mirrored.all()
    assert choices.top.max() == 4
    assert choices.left.min() == 0
    found = augment.crop_and_mirror(x, choices, spec.pad)
    for number in range(20):
        padded = torch.zeros(10, 10, 3)
        padded[2:8, 2:8] = x[number]
        top, left = int(choices.top[number]), int(choices.left[number])
        expected = padded[top : top + 6, left : left + 6]
        assert torch.equal(found[number], expected.flip(1) if choices.mirrored[number] else expected)


def test_no_flip_and_no_crop_leave_images_alone() -> None:
    images = random_images(10)
    spec = ImagesInMemory(name="cifar10", pad=0, flip=False)
    normalisation = augment.fit(images.pixels, spec)
    x, y = TrainingBatches(images, spec, normalisation, 4, seed=0).at(0)
    assert torch.equal(x, normalisation(images.pixels[y]).permute(0, 3, 1, 2))
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch", [3, 10, 25])
def test_every_image_is_seen_equally_often(batch: int) -> None:
    images = random_images(10)
    spec = ImagesInMemory(name="cifar10")
    batches = TrainingBatches(images, spec, augment.fit(images.pixels, spec), batch, seed=4)
    seen = torch.cat([batches.at(step)[1] for step in range(30 // batch * 10)])
    epochs = len(seen) // 10
    for epoch in range(epochs):
        assert sorted(seen[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert not torch.equal(seen[:10], seen[10:20])


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    images = random_images(40)
    spec = ImagesInMemory(name="cifar10")
    normalisation = augment.fit(images.pixels, spec)
    walked = TrainingBatches(images, spec, normalisation, 8, seed=5)
    x, y = [walked.at(step) for step in range(12)][-1]
    fresh_x, fresh_y = TrainingBatches(images, spec, normalisation, 8, seed=5).at(11)
    assert torch.equal(x, fresh_x)
    assert torch.equal(y, fresh_y)
    other_x, _ = TrainingBatches(images, spec, normalisation, 8, seed=6).at(11)
    assert not torch.equal(x, other_x)


def test_streams_are_independent() -> None:
    draws = {
        torch.rand((), generator=generator(seed, stream, index)).item()
        for seed in range(3)
        for stream in ("order", "augment")
        for index in range(50)
    }
    assert len(draws) == 300


def test_the_first_steps_can_be_on_small_images() -> None:
    greys = torch.arange(0, 250, 25, dtype=torch.uint8)  # each image of one grey
    images = Images(greys.view(10, 1, 1, 1).expand(10, 6, 6, 3), torch.arange(10))
    spec = ImagesInMemory(name="cifar10", pad=0, flip=False, image_size=6, small_size=3, small_share=0.5)
    normalisation = augment.Normalisation(torch.zeros(1, 1, 3), torch.ones(3))
    batches = TrainingBatches(images, spec, normalisation, 4, seed=0, small_steps=2)
    for step, size in ((0, 3), (1, 3), (2, 6)):
        x, y = batches.at(step)
        assert x.shape == (4, 3, size, size)
        assert torch.allclose(x.mean((1, 2, 3)), y * 25 / 255, atol=1e-6)


def test_evaluation_passes_every_image_once() -> None:
    images = random_images(23)
    normalisation = augment.fit(images.pixels, ImagesInMemory(name="cifar10"))
    parts = list(evaluation_batches(images, normalisation, batch=10))
    assert [len(y) for _, y in parts] == [10, 10, 3]
    assert torch.cat([y for _, y in parts]).tolist() == list(range(23))
