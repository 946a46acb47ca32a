"""Networks of other libraries, brought in and taken out: the same outputs, and every tensor used exactly once."""

import hashlib
import json
import os
import pickle
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign_files
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from test_peers import apart, assert_equal, images, narrow, randomise

import preresnet
from preresnet import trained
from preresnet.cli import main
from preresnet.data import augment, cifar, streaming
from preresnet.exchange import incoming, keras_files, outgoing, preparation, torch7, torch7_modules
from preresnet.exchange.shapes import differences
from preresnet.exchange.tables import KERAS, PYTORCHCV, TABLES, TIMM, TORCHVISION, Table
from preresnet.model import weights
from preresnet.model.network import Network, build
from preresnet.paper import peers
from preresnet.paper.networks import network
from preresnet.recipe import ImagesInMemory, PaperPhotographs
from preresnet.spec import NetSpec, UserError, to_json

CV = {table.title: table for table in PYTORCHCV}
KERAS_V2, KERAS_CIFAR_1, KERAS_CIFAR_2 = KERAS


def shallow(spec: NetSpec, factor: int = 8) -> NetSpec:
    return narrow(replace(spec, stages=tuple(replace(stage, num_units=2) for stage in spec.stages)), factor)


def projected(name: str) -> NetSpec:
    spec = network(name)
    dialect = replace(spec.dialect, dimension_change="projection", shared_preactivation="channel_change")
    return replace(spec, dialect=replace(dialect, stride_position="spatial"))


SPECS: list[tuple[str, NetSpec, Table]] = [
    ("timm", shallow(peers.timm_resnetv2(50)), TIMM),
    ("timm", shallow(peers.timm_resnetv2(18)), TIMM),
    ("timm", shallow(network("resnet18-original")), TORCHVISION),
    ("torchvision", shallow(network("resnet50-original-spatial")), TORCHVISION),
    ("pytorchcv", narrow(network("resnet50-original"), 8), CV["resnet of pytorchcv for ImageNet"]),
    ("pytorchcv", projected("resnet14-original"), CV["resnet of pytorchcv for CIFAR"]),
    ("pytorchcv", projected("resnet20-preact-bottleneck"), CV["preresnet of pytorchcv for CIFAR"]),
]
every_spec = pytest.mark.parametrize(("source", "spec", "table"), SPECS, ids=lambda one: getattr(one, "title", ""))


def used(spec: NetSpec) -> Network:
    model = build(spec, 0)
    randomise(model)
    return model.eval()


def same(model: Network, other: Network) -> None:
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        if not name.endswith("tracked"):
            assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name
    x = torch.randn(2, 3, 48, 41)
    with torch.no_grad():
        assert apart(other.eval()(x), model.eval()(x)) < 1e-6


# --- tables -------------------------------------------------------------------------------------------------------


@every_spec
def test_out_and_in_again(source: str, spec: NetSpec, table: Table, tmp_path: Path) -> None:
    model = used(spec)
    tensors, found = outgoing.take_out(model, source)
    assert found.title == table.title
    assert not set(tensors) & set(model.state_dict()) - {"stem.conv.weight"}
    torch.save(tensors, tmp_path / "x.pth")
    brought = incoming.bring(tmp_path / "x.pth", source)
    assert brought.num_tensors == len(tensors)
    assert not differences(brought.model.spec, spec)
    same(model, brought.model)


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_computes_the_same(depth: int, tmp_path: Path) -> None:
    peer = getattr(torchvision.models, f"resnet{depth}")(num_classes=7).double()
    randomise(peer)
    torch.save(
        {"state_dict": {f"module.{key}": one for key, one in peer.state_dict().items()}, "epoch": 3}, tmp_path / "x"
    )
    ours = incoming.bring(tmp_path / "x", "torchvision")
    assert any("state_dict is taken" in line for line in ours.said)
    model = ours.model.double()
    model.load_state_dict(dict(model.state_dict().items()))
    exact = incoming.fit(model.spec, peer.state_dict(), incoming.by_name(model.spec, TORCHVISION), "peer")
    model.load_state_dict(exact)
    out, _ = outgoing.take_out(model, "torchvision")
    assert all(torch.equal(out[key], one) for key, one in peer.state_dict().items())
    assert_equal(model, peer, images(2, 64, 75))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("layer2.0.bn1.bias"), r"there is no layer2.0.bn1.bias of shape \(16,\)"),
        (lambda s: s.update({"layer2.0.bn7.bias": torch.ones(16)}), r"layer2.0.bn7.bias is left over"),
        (lambda s: s.update({"layer1.0.conv1.weight": torch.ones(8, 8, 1, 1)}), "kernel sizes"),
        (
            lambda s: s.update({"layer2.1.conv2.weight": torch.ones(16, 16, 1, 1)}),
            r"has shape \(16, 16, 1, 1\), and the",
        ),
        (lambda s: s.update({"fc2.weight": torch.ones(16)}), "no layer of .* is called fc2.weight"),
        (lambda s: s.update({"layer1.0.bn1.bias": torch.full((8,), torch.nan)}), "not numbers, first in stages.0"),
        (lambda s: s.clear(), "none of its layers"),
        (lambda s: s.update({"conv1.weight": torch.ones(8, 3, 5, 5)}), "the first convolution is 5x5"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    tensors, _ = outgoing.take_out(used(shallow(network("resnet18-original"))), "torchvision")
    change(tensors)
    torch.save(tensors or {"x.weight": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=words) as caught:
        incoming.bring(tmp_path / "x.pth", "torchvision")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "target", "field"),
    [
        (network("resnet50-original"), "torchvision", "dialect.stride_position='first'"),
        (network("resnet18-preact"), "torchvision", "there is no layer for"),
        (network("resnet50-preact"), "timm", "no layer for stem.norm"),
        (network("resnet20-preact"), "pytorchcv", "dimension_change"),
        (
            replace(peers.timm_resnetv2(50), dialect=replace(peers.TIMM, norm_eps=1e-3)),
            "timm",
            "dialect.norm_eps=0.001",
        ),
        (network("resnet20-original-exclusive-gate-6"), "pytorchcv", "no layer for|unit.shortcut"),
    ],
)
def test_what_a_format_cannot_express_is_refused_by_its_field(spec: NetSpec, target: str, field: str) -> None:
    with pytest.raises(UserError, match=f"{target} cannot express this network.*({field})"):
        outgoing.take_out(build(spec, 0), target)


# --- Keras' files -------------------------------------------------------------------------------------------------

KERAS_SPECS = [
    (shallow(peers.keras_resnet_v2(50)), KERAS_V2),
    (narrow(peers.keras_cifar(14, version=1), 2), KERAS_CIFAR_1),
    (narrow(peers.keras_cifar(20, version=2), 2), KERAS_CIFAR_2),
]


@pytest.mark.parametrize(("spec", "table"), KERAS_SPECS, ids=["v2", "cifar 1", "cifar 2"])
@pytest.mark.parametrize("kind", ["h5", "keras", "early"])
def test_keras_files(spec: NetSpec, table: Table, kind: str, tmp_path: Path) -> None:
    model = used(spec)
    path = tmp_path / ("x.h5" if kind == "h5" else "x.keras")
    if kind == "h5":
        foreign_files.keras_h5(path, model, table)
    else:
        foreign_files.keras_3(path, model, table, named=kind == "keras")
    brought = incoming.bring(path, "keras")
    assert not differences(brought.model.spec, spec)
    same(model, brought.model)


def test_a_link_in_a_keras_file_is_not_followed(tmp_path: Path) -> None:
    import h5py

    foreign_files.keras_h5(tmp_path / "x.h5", used(KERAS_SPECS[0][0]), KERAS_V2)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["model_weights/elsewhere"] = h5py.ExternalLink("/etc/hosts", "/x")
    with pytest.raises(UserError, match="link to elsewhere"):
        incoming.bring(tmp_path / "x.h5", "keras")


# --- Torch 7's files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "resnet20-original",
        "resnet20-preact-bottleneck",
        "resnet50-original-spatial",
        "resnet50-preact-spatial",
        "resnet18-preact",
    ],
)
def test_torch_7_files(name: str, wrapped: bool, tmp_path: Path) -> None:
    spec = network(name)
    spec = shallow(spec, 8 if spec.stem.pooled else 2)
    model = used(spec)
    (tmp_path / "x.t7").write_bytes(foreign_files.torch7(model, wrapped))
    brought = incoming.bring(tmp_path / "x.t7", "torch7")
    assert not differences(brought.model.spec, spec)
    same(model, brought.model)


def test_a_torch_7_file_may_hold_itself_and_ask_for_no_more_than_it_has(tmp_path: Path) -> None:
    writer = foreign_files.Torch7()
    writer.ints(3, 1, 1, 2)  # a table, the first thing, of one entry: the key is text
    writer.text("me")
    writer.ints(3, 1)  # and its value is the first thing again
    path = tmp_path / "x.t7"
    path.write_bytes(bytes(writer.data))
    assert torch7.read(path).keys() == {"me"}
    with pytest.raises(UserError, match=r"no nn.Sequential"):
        incoming.bring(path, "torch7")
    path.write_bytes(np.array([3, 1, 2**31 - 1], "<i4").tobytes())
    with pytest.raises(UserError, match="2,147,483,647 entries does not fit"):
        torch7.read(path)
    path.write_bytes(b"".join(np.array([3, number, 1], "<i4").tobytes() for number in range(10_000)))
    with pytest.raises(UserError, match="100 deep in each other"):
        torch7.read(path)
    # 2 to the power of 40 modules, in a small file
    tree = torch7.Thing("nn.Sequential", {"modules": {}})
    for _ in range(40):
        tree = torch7.Thing("nn.Sequential", {"modules": {1: tree, 2: tree}})
    with pytest.raises(UserError, match="over 100,000"):
        torch7_modules.network_of(tree)


# --- hostile files ------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch " + os.environ["EVIL"],)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_of_a_pickle_is_run(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    torch.save({"conv1.weight": Evil()}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "y.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("x.pth", "y.pth"):
        with pytest.raises(UserError, match=r"no code of a file is run|no whole file"):
            incoming.bring(tmp_path / name, "torchvision")
    assert not (tmp_path / "evil").exists()


def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(1).expand(1 << 40)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="larger than the file"):
        incoming.bring(tmp_path / "x.pth", "torchvision")


def mutations(data: bytes, count: int, seed: int) -> list[bytes]:
    """A file cut off, with bytes changed, repeated or left out."""
    chance, found = random.Random(seed), []
    for _ in range(count):
        made = bytearray(data)
        at = chance.randrange(len(made) if chance.random() < 0.5 else min(len(made), 2000))
        kind = chance.randrange(4)
        if kind == 0:
            del made[at:]
        elif kind == 1:
            for place in range(at, min(len(made), at + chance.randrange(1, 9))):
                made[place] = chance.randrange(256)
        elif kind == 2:
            del made[at : at + chance.randrange(1, 99)]
        else:
            made[at:at] = made[max(0, at - chance.randrange(1, 99)) : at]
        found.append(bytes(made))
    return found


def small(source: str, tmp_path: Path) -> tuple[bytes, str]:
    if source == "torch7":
        return foreign_files.torch7(used(narrow(network("resnet8-preact"), 8))), ".t7"
    path = tmp_path / {"keras": "x.keras", "h5": "x.h5", "pth": "x.pth", "safetensors": "x.safetensors"}[source]
    spec, table = KERAS_SPECS[1]
    if source == "h5":
        foreign_files.keras_h5(path, used(narrow(spec, 4)), table)
    elif source == "keras":
        foreign_files.keras_3(path, used(narrow(spec, 4)), table)
    else:
        tensors, _ = outgoing.take_out(used(narrow(projected("resnet8-original"), 8)), "pytorchcv")
        from safetensors.torch import save_file

        save = torch.save if source == "pth" else save_file
        save({key: one.contiguous() for key, one in tensors.items()}, path)
    return path.read_bytes(), path.suffix


FUZZED = int(os.environ.get("PRERESNET_FUZZ", "300"))


@pytest.mark.parametrize("source", ["torch7", "pth", "safetensors"])
def test_damaged_files_end_in_one_clear_error(source: str, tmp_path: Path) -> None:
    data, suffix = small(source, tmp_path)
    path = tmp_path / f"damaged{suffix}"
    refused = []
    for made in mutations(data, FUZZED, 1):
        path.write_bytes(made)
        try:
            incoming.bring(path, "torch7" if source == "torch7" else "pytorchcv")
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > FUZZED / 4
    assert all("\n" not in words and str(path) in words for words in refused)


@pytest.mark.parametrize("source", ["h5", "keras"])
def test_damaged_keras_files_end_in_one_clear_error(source: str, tmp_path: Path) -> None:
    """In one process, which HDF5 could end; `keras_files.read` gives each file one of its own."""
    data, suffix = small(source, tmp_path)
    paths = []
    for number, made in enumerate(mutations(data, FUZZED, 2)):
        paths.append(tmp_path / f"{number}{suffix}")
        paths[-1].write_bytes(made)
    waiting, refused, ended = list(paths), 0, 0
    while waiting:
        report = tmp_path / "report"
        report.unlink(missing_ok=True)
        if (child := os.fork()) == 0:
            code = 1
            try:
                with open(report, "w") as file:
                    for path in waiting:
                        try:
                            keras_files.read_here(path)
                            words = "whole"
                        except UserError as error:
                            words = str(error)
                        print(json.dumps(words), file=file, flush=True)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        assert all("\n" not in line for line in lines)
        refused += sum(line != "whole" for line in lines)
        waiting = waiting[len(lines) + (status != 0) :]
        if status:
            ended += 1
            assert os.WIFSIGNALED(status), lines[-1:]
            with pytest.raises(UserError, match="no whole Keras file"):
                keras_files.read(paths[len(paths) - len(waiting) - 1])
    assert refused > FUZZED / 4


# --- the command --------------------------------------------------------------------------------------------------


def test_sums_of_cifar_are_those_of_its_images(tmp_path: Path) -> None:
    root = Path(os.environ.get("PRERESNET_TEST_DATA", Path.home() / "data"))
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip("no CIFAR-10 in ~/data or PRERESNET_TEST_DATA")
    classes, (pixels, _), _ = cifar.read("cifar10", root)
    assert preparation._classes("cifar10", 10, None) == classes
    for kind in ("per_pixel_mean", "channel_mean_std"):
        expected = augment.fit(pixels, ImagesInMemory(name="cifar10", normalise=kind))  # type: ignore[arg-type]
        found = preparation._statistics("cifar10", kind)
        assert torch.equal(found.mean, expected.mean)
        torch.testing.assert_close(found.std, expected.std)


def test_an_imported_network_answers_like_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = used(projected("resnet8-original"))
    torch.save(outgoing.take_out(model, "pytorchcv")[0], tmp_path / "x.pth")
    numbers = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
    (tmp_path / "numbers.json").write_text(json.dumps(numbers))
    out = tmp_path / "net"
    command = ["import", str(tmp_path / "x.pth"), "--from", "pytorchcv", "--data", "cifar10", "--out", str(out)]
    assert main([*command, "--normalise", str(tmp_path / "numbers.json")]) == 0
    assert "each used once" in capsys.readouterr().out
    assert json.loads((out / "import.json").read_text())["from"] == "resnet of pytorchcv for CIFAR"
    same(model, preresnet.load(out))
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "image.png")
    assert main(["predict", str(out), str(tmp_path / "image.png"), "--json", "--precision", "float32"]) == 0
    top = json.loads(capsys.readouterr().out)["images"][0]["top"][0]
    mean, std = (torch.tensor(numbers[name]) for name in ("mean", "std"))
    with torch.no_grad():
        expected = model(((pixels / 255 - mean) / std).permute(2, 0, 1)[None]).softmax(1)[0]
    assert top["class"] == trained.open_weights(out).classes[int(expected.argmax())]
    assert top["probability"] == pytest.approx(float(expected.max()), rel=1e-4)
    assert main([*command]) == 2  # the folder is there
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "target", "file"),
    [
        ("resnet18-original", "torchvision", "x.pth"),
        ("resnet18-original", "timm", "x.safetensors"),
        ("", "keras", "x.h5"),
    ],
)
def test_a_run_goes_out_and_comes_back(
    name: str, target: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = used(shallow(network(name)) if name else KERAS_SPECS[0][0])
    weights.save(tmp_path / "weights.safetensors", model, {})
    command = ["export", str(tmp_path), "--to", target, "--out", str(tmp_path / file)]
    assert main(command) == 0
    assert file in capsys.readouterr().out
    same(model, incoming.bring(tmp_path / file, target).model)
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_network_by_name_has_the_classes_of_the_file(tmp_path: Path) -> None:
    model = used(replace(network("resnet18-original"), num_classes=7))
    outgoing.write(tmp_path / "x.pth", model, "torchvision")
    same(model, incoming.bring(tmp_path / "x.pth", "torchvision", "resnet18-original").model)
    (tmp_path / "x.t7").write_bytes(foreign_files.torch7(model))
    same(model, incoming.bring(tmp_path / "x.t7", "torch7", "resnet18-original").model)
    spec, table = KERAS_SPECS[0]
    foreign_files.keras_h5(tmp_path / "x.h5", used(spec), table)
    with pytest.raises(UserError, match=r"norms have epsilon .*--spec has norm_eps=1e-05"):
        incoming.bring(tmp_path / "x.h5", "keras", replace(spec, dialect=replace(spec.dialect, norm_eps=1e-5)))


def test_numbers_of_a_file(tmp_path: Path) -> None:
    spec = network("resnet20-preact")
    mean = torch.rand(32, 32, 3)
    (tmp_path / "image.json").write_text(json.dumps({"mean": mean.permute(2, 0, 1).tolist(), "std": 0.5}))
    np.save(tmp_path / "image.npy", mean.numpy())
    for name, std in (("image.json", 0.5), ("image.npy", 1.0)):
        found = preparation._from_file(tmp_path / name, spec)
        torch.testing.assert_close(found.mean, mean)
        assert found.std.tolist() == [std] * 3
    for content, words in (
        ({"mean": [125.3, 123.0, 113.9], "std": [1, 1, 1]}, "divided by 255"),
        ({"mean": [0.5], "std": [0]}, "std above 0"),
        ({"mean": [0.5, 0.5], "std": [1]}, "mean has 2 channels"),
        ({"mean": "x", "std": [1]}, "must be numbers"),
        ({"std": [1]}, "must hold"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=words):
            preparation._from_file(tmp_path / "bad.json", spec)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from", "timm"], "none of its layers"),
        (["--from", "pytorchcv", "--data", "cifar100"], "cifar100 has 100 classes, and the network answers with 10"),
        (["--from", "pytorchcv", "--normalise", "nowhere.json"], "nowhere.json"),
        (["--from", "pytorchcv", "--spec", "resnet20-original"], "does not fit|has no"),
        (["--from", "pytorchcv", "--spec", "resnet8"], "no network 'resnet8'"),
        (["--from", "torch7"], "no whole .t7 file"),
        (["--from", "torch7", "--spec", "nonsense"], "no network 'nonsense'"),
        (["--from", "keras"], "no whole Keras file"),
        (["--from", "safetensors"], "not a whole .safetensors file"),
    ],
)
def test_bad_input_is_one_error(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(outgoing.take_out(used(projected("resnet8-original")), "pytorchcv")[0], tmp_path / "x.pth")
    assert main(["import", str(tmp_path / "x.pth"), *options, "--out", str(tmp_path / "net")]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert said.count("error: ") == 1
    assert not (tmp_path / "net").exists()


def test_our_own_names_need_no_metadata(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = used(network("resnet20-preact"))
    save_file({key: one.contiguous() for key, one in model.state_dict().items()}, tmp_path / "x.safetensors")
    same(model, incoming.bring(tmp_path / "x.safetensors", "safetensors").model)
    (tmp_path / "spec.json").write_text(to_json(model.spec))
    same(model, incoming.bring(tmp_path / "x.safetensors", "safetensors", model.spec).model)


def test_tables_read_in_both_directions() -> None:
    for table in (table for tables in TABLES.values() for table in tables):
        for name in (
            "stem.conv",
            "stages.1.units.12.residual.conv2",
            "stages.3.units.0.join.shortcut.conv",
            "head.linear",
        ):
            if (theirs := table.theirs(name)) is not None:
                assert table.ours(theirs) == name
        assert table.ours("nothing.at.all") is None


@pytest.mark.parametrize("file", ["x.npy", "x.parquet"])
def test_embeddings_of_a_folder(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = used(shallow(network("resnet18-original")))
    data = PaperPhotographs(name="folder", image_size=48, test_crops=(48,), test_sides=(48,), shorter_side=(48, 64))
    kept = trained.metadata(data, [str(label) for label in range(1000)], streaming.normalisation())
    weights.save(tmp_path / "weights.safetensors", model, kept)
    (tmp_path / "images").mkdir()
    pixels = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one.numpy()).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"x")
    command = ["embed", str(tmp_path / "weights.safetensors"), str(tmp_path / "images"), "--out", str(tmp_path / file)]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "broken.png" in said.err
    assert "3 images, 64 numbers each" in said.out
    if file == "x.npy":
        found, names = np.load(tmp_path / file), (tmp_path / "x.txt").read_text().splitlines()
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / file)
        found, names = np.array(table["embedding"].to_pylist()), table["image"].to_pylist()
    order = [int(Path(name).stem) for name in names]
    with torch.no_grad():
        features = model.forward_features(streaming.normalisation()(pixels[order]).permute(0, 3, 1, 2))
        np.testing.assert_allclose(found, features.mean((2, 3)).numpy(), rtol=1e-3, atol=1e-4)
        assert torch.equal(model.pyramid(pixels.permute(0, 3, 1, 2) / 255)[-1].isfinite().all(), torch.tensor(True))
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet20-preact", "resnet18-original"])
def test_the_pyramid_has_a_map_for_each_stage(name: str) -> None:
    model = used(narrow(network(name), 4))
    x = torch.randn(2, 3, 64, 64)
    taps, maps = model.taps(x), model.pyramid(x)
    for number, (stage, found) in enumerate(zip(model.spec.stages, maps, strict=True)):
        last = number == len(maps) - 1
        expected = taps["head.norm"] if last else taps[f"stages.{number}.units.{stage.num_units - 1}"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="input of shape"):
        model.pyramid(x[0])


PACKAGED = "cifar10/resnet20-preact"


def test_the_network_that_comes_with_the_package_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (50, 70, 3), np.uint8)).save("photo.png")
    assert main(["predict", PACKAGED, "photo.png", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["images"]
    assert len(answer["top"]) == 5
    assert {one["class"] for one in answer["top"]} <= set(trained.open_weights(Path(PACKAGED)).classes)
    model = preresnet.load(PACKAGED)
    assert model.spec == network("resnet20-preact")
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())


def test_what_comes_with_the_package_is_small_and_says_how_it_was_trained() -> None:
    assert PACKAGED in weights.packaged()
    for name in weights.packaged():
        _, kept = weights.load(Path(name))
        record = json.loads(kept["record"])
        assert record["name"] == name
        assert record["split"] == "test"
        assert record["steps"] == preresnet.recipe(name).schedule.steps
        file = Path(weights.__file__).parent / weights.PACKAGED / f"{name.replace('/', '--')}.safetensors"
        assert file.stat().st_size <= 2_000_000
        evidence = json.loads(
            (Path(__file__).parents[1] / "records/packaged" / f"{name.replace('/', '-')}.json").read_text()
        )
        assert evidence["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert evidence["error_pct"] == record["error_pct"]


def test_what_lies_at_a_path_comes_before_what_is_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / PACKAGED).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no weights\.safetensors in cifar10"):
        preresnet.load(PACKAGED)
    with pytest.raises(UserError, match=f"comes with this program: {PACKAGED}"):
        preresnet.load("cifar10/resnet20")


@pytest.mark.parametrize("stored", ["bfloat16", "float16", None])
def test_a_file_by_our_own_names(stored: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(network("resnet8-preact"), 0).eval()
    randomise(model)
    kept = trained.metadata(ImagesInMemory(name="cifar10"), "abcdefghij", streaming.normalisation())
    weights.save(tmp_path / "weights.safetensors", model, kept)
    option = [] if stored is None else ["--stored", stored]
    out = tmp_path / "new" / "small.safetensors"
    assert main(["export", str(tmp_path), "--to", "safetensors", "--out", str(out), *option]) == 0
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = model(x), preresnet.load(out)(x)
    limit = {"bfloat16": 3e-2, "float16": 4e-3, None: 0.0}[stored]
    assert float((found - expected).abs().max() / expected.abs().max()) <= limit
    assert trained.open_weights(out).classes == tuple("abcdefghij")
    sizes = [file.stat().st_size for file in (out, tmp_path / "weights.safetensors")]
    assert (sizes[0] < 0.6 * sizes[1]) == (stored is not None)
    capsys.readouterr()
    assert main(["export", str(tmp_path), "--to", "safetensors", "--out", str(out), *option]) == 2  # it is there
    assert main(["export", str(tmp_path), "--to", "safetensors", "--out", str(tmp_path / "a.pth")]) == 2
    assert main(["export", str(tmp_path), "--to", "timm", "--out", str(tmp_path / "b.pth"), "--stored", "float16"]) == 2
    assert not (tmp_path / "a.pth").exists()
    assert not (tmp_path / "b.pth").exists()


def test_a_file_says_which_run_it_comes_from(tmp_path: Path) -> None:
    assert outgoing.record_of(tmp_path) == {}
    (tmp_path / "result.json").write_text(json.dumps({"name": "a", "error_pct": 1.5, "network": {}}))
    assert json.loads(outgoing.record_of(tmp_path)["record"]) == {"name": "a", "error_pct": 1.5}
