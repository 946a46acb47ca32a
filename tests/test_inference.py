import pytest
import torch

import preresnet
from preresnet import inference
from preresnet.recipe import ImagesInMemory


def answers(classes: list[int], confidence: float = 0.9, num_classes: int = 3) -> torch.Tensor:
    """Logits whose softmax gives one class a probability and shares the rest."""
    probability = torch.full((len(classes), num_classes), (1 - confidence) / (num_classes - 1))
    probability[torch.arange(len(classes)), classes] = confidence
    return probability.log()


def test_errors_are_exact_counts() -> None:
    errors = inference.count_errors(answers([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0]))
    assert (errors.num_images, errors.num_wrong, errors.error_pct) == (4, 1, 25.0)
    expected = -(3 * torch.tensor(0.9).log() + torch.tensor(0.05).log()) / 4
    assert errors.loss == pytest.approx(expected.item(), rel=1e-5)


def test_the_report_by_class() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    report = inference.full_report(answers([0, 0, 1, 1, 1]), labels, ("cat", "dog", "eel"))
    assert report["confusion"] == [[2, 1, 0], [0, 2, 0], [0, 0, 0]]
    cat, dog, eel = report["classes"]
    assert (cat["name"], cat["num_images"], cat["num_wrong"]) == ("cat", 3, 1)
    assert cat["error_pct"] == pytest.approx(100 / 3)
    assert cat["precision_pct"] == 100
    assert dog["precision_pct"] == pytest.approx(200 / 3)
    assert (eel["num_images"], eel["error_pct"], eel["precision_pct"]) == (0, None, None)
    assert report["error_pct"] == 20.0


def test_calibration_of_a_known_mixture() -> None:
    """Ten answers at 0.9 of which 8 are right, ten at 0.6 of which 6 are: a gap of 0.1 on half of the images."""
    output = torch.cat([answers([0] * 10, 0.9), answers([0] * 10, 0.6)])
    labels = torch.tensor([0] * 8 + [1] * 2 + [0] * 6 + [1] * 4)
    calibration = inference.full_report(output, labels, ("a", "b", "c"))["calibration"]
    assert calibration["ece_pct"] == pytest.approx(5.0, abs=1e-3)
    assert [entry["num_images"] for entry in calibration["bins"]] == [10, 10]
    assert [entry["accuracy_pct"] for entry in calibration["bins"]] == pytest.approx([60, 80])


def test_full_confidence_falls_into_the_last_bin() -> None:
    output = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    calibration = inference.full_report(output, torch.tensor([0, 1]), ("a", "b"))["calibration"]
    assert calibration["bins"][0]["to"] == 1.0
    assert calibration["ece_pct"] == pytest.approx(50.0)


def test_logits_are_those_of_evaluation_mode_and_the_mode_is_restored() -> None:
    model = preresnet.create_model("resnet8-preact", seed=0)
    model.head.norm.get_buffer("running_mean").fill_(1.0)
    x = torch.randn(4, 3, 8, 8)
    output, labels = inference.logits(model, [(x[:3], torch.tensor([0, 1, 2])), (x[3:], torch.tensor([1]))], "float32")
    assert model.training
    assert labels.tolist() == [0, 1, 2, 1]
    with torch.no_grad():
        assert torch.allclose(output, model.eval()(x), atol=1e-5)


def test_a_weights_file_needs_nothing_else(tmp_path) -> None:
    from preresnet import trained
    from preresnet.data.augment import Normalisation
    from preresnet.model import weights

    model = preresnet.create_model("resnet8-preact", num_classes=4, in_channels=1, seed=0)
    normalisation = Normalisation(torch.rand(8, 8, 1), torch.tensor([0.3]))
    data = ImagesInMemory(name="digits", image_size=8)
    weights.save(tmp_path / "w.safetensors", model, trained.metadata(data, "abcd", normalisation))
    opened = trained.open_weights(tmp_path / "w.safetensors")
    assert opened.classes == ("a", "b", "c", "d")
    assert opened.data == data
    assert torch.equal(opened.normalisation.mean, normalisation.mean)
    assert torch.equal(opened.normalisation.std, normalisation.std)
    assert opened.model.spec == model.spec
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in opened.model.state_dict().items())


def test_files_that_are_no_weights_are_named(tmp_path) -> None:
    import safetensors.torch

    from preresnet import trained

    with pytest.raises(ValueError, match=r"no weights at .*nothing"):
        preresnet.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no weights\.safetensors in"):
        preresnet.load(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"text is not a whole \.safetensors file"):
        preresnet.load(tmp_path / "text")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"foreign does not say which network"):
        preresnet.load(tmp_path / "foreign")
    from preresnet.model import weights

    broken = preresnet.create_model("resnet8-preact", seed=0)
    broken.head.linear.weight.data[1, 2] = float("nan")
    weights.save(tmp_path / "nan", broken, {})
    with pytest.raises(ValueError, match=r"infinite or not numbers, first in head\.linear\.weight"):
        preresnet.load(tmp_path / "nan")
    weights.save(tmp_path / "bare", preresnet.create_model("resnet8-preact", seed=0), {})
    assert preresnet.load(tmp_path / "bare").spec.depth == 8
    with pytest.raises(ValueError, match=r"bare does not hold data, classes, normalisation"):
        trained.open_weights(tmp_path / "bare")
