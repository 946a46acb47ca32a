"""What a probe says of batches, labels and losses that do not fit, and that a model stays as it is."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import preresnet
from preresnet.model.network import Network
from preresnet.propagation.probe import probe
from preresnet.spec import UserError


def made(name: str) -> Network:
    return preresnet.create_model(name, seed=0)


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 10


def test_labels_that_do_not_fit_are_named() -> None:
    x, y = images()
    for labels, words in (
        (y + 7, "a label 10; the output has 10 classes, so labels are 0 to 9"),
        (y - 1, "a label -1; the output has 10 classes"),
        (y.float(), "labels of type float32 .*; give integers from 0 to 9, or another loss"),
        (y > 2, "labels of type bool"),
        (y[:4], r"labels of shape \(4,\) for an output of shape \(6, 10\); they have to be \(6,\)"),
        (y.view(2, 3), r"labels of shape \(2, 3\)"),
        (F.one_hot(y, 10), r"labels of shape \(6, 10\)"),
        (torch.full((6,), -100), "all labels are -100"),
        ("cat", "labels of type str; give a tensor of integers"),
        (["a"] * 6, "labels of type list; give a tensor of integers"),
    ):
        with pytest.raises(UserError, match=words):
            probe(made("resnet8-preact"), (x, labels))
    plain = probe(made("resnet8-preact"), (x, y)).loss
    for labels in (y.to(torch.uint8), y.to(torch.int32), y.tolist(), y.numpy()):
        assert probe(made("resnet8-preact"), (x, labels)).loss == plain
    some = y.clone()
    some[0] = -100  # left out, as PyTorch does
    assert probe(made("resnet8-preact"), (x, some)).loss != plain


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + self.body(x))


class Pictures(nn.Module):
    """Takes images of 8x8, as a network of another package."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.norm(self.body(x))).flatten(1))


@pytest.mark.parametrize("build", [lambda: made("resnet8-preact"), Pictures], ids=["ours", "another's"])
def test_images_that_do_not_fit_are_named(build: Callable[[], nn.Module]) -> None:
    x, y = images()
    for bad, words in (
        (
            (x * 99).to(torch.uint8),
            r"fails on this batch: .*uint8 \(6, 3, 8, 8\), 0 to .*weights: float32.*images are floating",
        ),
        (x.double(), r"fails on this batch: .*Given: .*float64 \(6, 3, 8, 8\); weights: float32"),
        (x[:, :1], r"\(6, 1, 8, 8\)"),
        (x[0], r"\(3, 8, 8\)"),
        (x[:0], "holds no sample"),
        (torch.tensor(1.0), "holds no sample"),
    ):
        with pytest.raises(UserError, match=words):
            probe(build(), (bad, y))
    with pytest.raises(UserError, match=r"a model of type str; give a torch\.nn\.Module"):
        probe("resnet8-preact", (x, y))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a batch of type dict"):
        probe(build(), {"labels": y})


def test_integers_out_of_range_are_named() -> None:
    ids = torch.randint(11, (3, 5))
    assert len(probe(Words(), ids).units) == 1
    ids[1, 2] = 11
    with pytest.raises(UserError, match=r"Words fails on this batch: index out of range.*int64 \(3, 5\), \d to 11"):
        probe(Words(), ids)


def test_a_loss_that_is_no_number_and_outputs_without_classes() -> None:
    x, y = images()
    with pytest.raises(UserError, match=r"the loss is of shape \(6,\); it has to be a tensor with one number"):
        probe(Pictures(), (x, y), loss=lambda output, _: output.sum(1))
    with pytest.raises(UserError, match="the loss is of type float"):
        probe(Pictures(), (x, y), loss=lambda output, _: 1.0)  # type: ignore[arg-type, return-value]
    one = Pictures()
    one.head = nn.Linear(4 * 64, 1)
    for batch in ((x, y), x):
        with pytest.raises(UserError, match=r"the output has shape \(6, 1\); cross entropy needs .* give another loss"):
            probe(one, batch)
    assert probe(one, (x, y), loss=lambda output, labels: (output[:, 0] - labels).square().mean()).loss > 0


@pytest.mark.parametrize("build", [lambda: made("resnet8-preact"), Pictures, Words], ids=["ours", "another's", "words"])
def test_without_gradients_and_in_inference_mode_it_is_the_same(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    x = torch.randint(11, (3, 5)) if isinstance(model, Words) else images()[0]
    expected = probe(model, x)
    with torch.no_grad():
        assert probe(model, x) == expected
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        model.eval()(x)
        assert probe(model, x.clone()) == expected  # a tensor that cannot be saved for a backward pass
        assert torch.is_inference_mode_enabled()
        made_inside = build()
    assert probe(model, x) == expected
    with pytest.raises(UserError, match=r"was made inside torch\.inference_mode"):
        probe(made_inside, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_measured_too(dtype: torch.dtype) -> None:
    for build in (lambda: made("resnet8-preact"), Pictures):
        torch.manual_seed(0)
        model = build()
        x, y = images()
        exact, found = probe(model.double(), (x.double(), y)), probe(model.to(dtype), (x.to(dtype), y))
        assert found.backward["gradient"] == pytest.approx(exact.backward["gradient"], rel=0.1)
        assert max(found.agreement.values()) < (1e-12 if dtype == torch.float64 else 0.1)


@pytest.mark.parametrize("state", ["training", "evaluation", "frozen", "channels last", "a view", "compiled"])
def test_the_state_of_a_model_does_not_matter(state: str) -> None:
    model, (x, y) = Pictures(), images()
    expected = probe(model, (x, y))
    other: Any = model.eval() if state == "evaluation" else model.train()
    if state == "frozen":
        model.requires_grad_(False)
    if state == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if state == "a view":
        x = torch.stack([x, -x], 4)[..., 0]
    if state == "compiled":
        other = torch.compile(model)
    found = probe(other, (x, y))
    assert found.units == expected.units
    assert found.backward["straight"] == pytest.approx(expected.backward["straight"], rel=1e-5)
    assert found.backward["gradient"] == pytest.approx(expected.backward["gradient"], rel=1e-5)
    assert bool(found.weights) == (state != "frozen")


def test_nothing_of_another_persons_model_is_touched() -> None:
    calls: list[str] = []
    model, (x, y) = Pictures(), images()
    model.stem.weight.register_hook(lambda grad: calls.append("gradient"))
    model.body.weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("accumulated"))
    model.head.register_full_backward_hook(lambda *_: calls.append("backward of the copy"))
    model.last = model.stem(x)  # what a module keeps: a tensor of a graph  # type: ignore[assignment]
    x.requires_grad_()
    model(x).sum().backward()
    calls.clear()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    state, kept = copy.deepcopy(model.state_dict()), x.grad.clone() if x.grad is not None else None
    hooks = {name: len(module._forward_hooks) + len(module._backward_hooks) for name, module in model.named_modules()}
    randoms = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    probe(model, (x, y), (x[:4], y[:4]))
    with pytest.raises(UserError):
        probe(model, (x, y + 100))
    assert set(calls) <= {"backward of the copy"}
    assert torch.equal(torch.get_rng_state(), randoms[0])
    assert (random.getstate(), str(np.random.get_state())) == randoms[1:]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(one.grad, gradients[name]) for name, one in model.named_parameters() if one.grad is not None)
    assert kept is not None
    assert x.grad is not None
    assert torch.equal(x.grad, kept)
    after = {name: len(module._forward_hooks) + len(module._backward_hooks) for name, module in model.named_modules()}
    assert after == hooks
    assert model.training


def test_parameters_without_values_are_named() -> None:
    x, y = images()
    lazy = Pictures()
    lazy.head = nn.LazyLinear(10)
    with pytest.raises(UserError, match=r"parameter 'head\.weight' has no shape yet; call the network once"):
        probe(lazy, (x, y))
    assert isinstance(lazy.head.weight, nn.parameter.UninitializedParameter)
    with pytest.raises(UserError, match="is on the meta device, without values"):
        probe(Pictures().to("meta"), (x, y))
