"""Where in an image an answer comes from: the map is exact, and its picture says what the network saw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import preresnet
from preresnet import inference, trained
from preresnet.cli import main
from preresnet.data import streaming
from preresnet.model import weights
from preresnet.paper.networks import network
from preresnet.recipe import ImagesInMemory, PaperPhotographs
from preresnet.spec import Dialect, UserError

SPEC = PaperPhotographs(name="folder", image_size=64, shorter_side=(73, 137), test_crops=(91, 64), test_sides=(91, 73))
NAMES = ("ant [x]", "bee $1$", "cow")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["resnet8-preact", "resnet8-original", "resnet18-preact", "resnet50-original"])
@pytest.mark.parametrize("size", [33, 48])
def test_the_mean_of_a_map_and_the_bias_are_the_logit(name: str, dtype: torch.dtype, size: int) -> None:
    model = preresnet.create_model(name, num_classes=5, seed=0).to(dtype)
    model(torch.randn(4, 3, size, size, dtype=dtype))  # running statistics that are not 0 and 1
    model.eval()
    x = torch.randn(3, 3, size, size, dtype=dtype)
    for labels in (None, torch.tensor([4, 0, 2])):
        output, maps = inference.class_maps(model, x, labels)
        torch.testing.assert_close(output, model(x))
        chosen = output.argmax(1) if labels is None else labels
        found = maps.mean((1, 2)) + model.head.linear.bias[chosen]
        torch.testing.assert_close(found, output[torch.arange(3), chosen])


def test_a_network_without_a_last_activation_is_explained_too() -> None:
    spec = network("resnet8-preact")
    model = preresnet.build(replace(spec, dialect=Dialect(last_activation=False)), seed=0).eval()
    x = torch.randn(2, 3, 16, 16)
    output, maps = inference.class_maps(model, x)
    found = maps.mean((1, 2)) + model.head.linear.bias[output.argmax(1)]
    torch.testing.assert_close(found, output.max(1).values)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network for photographs of three classes."""
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    model = preresnet.create_model("resnet18-preact", num_classes=3, seed=0)
    weights.save(path, model, trained.metadata(SPEC, NAMES, streaming.normalisation()))
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    path = tmp_path / "a photo.png"
    Image.fromarray(pixels).save(path)
    return path


def test_it_sees_what_predict_sees(file: Path, photo: Path) -> None:
    opened = trained.open_weights(file)
    answers, _ = trained.predict(opened, [photo], torch.device("cpu"), "float32")
    found = trained.explain(opened, photo, device=torch.device("cpu"))
    assert found.pixels.shape == (91, 91, 3)
    assert found.name == answers[0]["top"][0]["class"] == found.top[0]["class"]
    for one, other in zip(found.top, answers[0]["top"], strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)
    assert trained.explain(opened, photo, "cow").name == "cow"
    with pytest.raises(UserError, match="class 'dog' of --class is none of the 3 classes"):
        trained.explain(opened, photo, "dog")


def test_a_picture_of_each_image_is_written_and_none_is_overwritten(
    file: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more").mkdir()
    Image.open(photo).save(tmp_path / "more" / "a photo.jpg")
    (tmp_path / "more" / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    assert main(["explain", str(file), str(photo), str(tmp_path / "more"), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == ["a photo-2.png", "a photo.png"]
    assert "broken.jpg: cannot be read as an image" in said.err
    assert said.out.count("picture  ") == 2
    with Image.open(out / "a photo.png") as picture:
        assert picture.size[0] > 500
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    assert (colours.max(1) - colours.min(1)).max() > 60  # not grey alone
    before = (out / "a photo.png").read_bytes()
    assert main(["explain", str(file), str(photo), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (out / "a photo.png").read_bytes() == before
    assert main(["explain", str(file), str(photo), "--out", str(tmp_path / "x"), "--class", "dog"]) == 2
    assert "none of the 3 classes" in capsys.readouterr().err
    assert main(["explain", str(file), str(photo), "--out", str(tmp_path / "y"), "--class", "bee $1$"]) == 0


def test_grey_images_in_memory_are_explained_too(photo: Path, tmp_path: Path) -> None:
    from preresnet.data.augment import Normalisation

    path = tmp_path / "w.safetensors"
    model = preresnet.create_model("resnet8-preact", num_classes=2, in_channels=1, seed=0)
    normalisation = Normalisation(torch.rand(16, 16, 1), torch.ones(1))
    weights.save(path, model, trained.metadata(ImagesInMemory(name="digits", image_size=16), "ab", normalisation))
    assert main(["explain", str(path), str(photo), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "a photo.png").is_file()
