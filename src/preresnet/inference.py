"""What a network answers, with its norms folded, and how many of its answers are wrong, counted exactly."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preresnet.model import folding, program
from preresnet.model.network import Network
from preresnet.recipe import Precision
from preresnet.spec import NetSpec

CALIBRATION_BINS = 15  # Guo et al., 2017
TOP = 5  # Table 5 of the paper prints the errors of the first answer and of the first five
FEW_PIXELS = {torch.float32: 4 * 32 * 32, torch.bfloat16: 8 * 32 * 32}  # that `program` takes in one call
CACHE_BYTES = 8 << 20  # a CPU answers in parts whose largest feature map stays in its last-level cache


def answering(model: Network, precision: Precision) -> Callable[[Tensor], Tensor]:
    """A function that answers as the network in evaluation mode does, with its norms folded (`folding.folded`).

    Later changes of the network's weights do not reach it.

    Args:
        model: on the device that is to compute.
        precision: ``bfloat16``, or ``float32`` for the type of the network's weights.

    Returns:
        (n, in_channels, h, w) -> (n, num_classes), in the type of the network's weights.
    """
    own = next(model.parameters()).dtype
    dtype = torch.bfloat16 if precision == "bfloat16" else own
    network = folding.folded(model, dtype)
    on_cpu = next(model.parameters()).device.type == "cpu"
    few = program.answering(folding.folded(model, torch.float32), dtype) if on_cpu and own == torch.float32 else None

    def answer(x: Tensor) -> Tensor:
        images, _, height, width = x.shape
        limit = FEW_PIXELS.get(dtype, 0)
        with torch.inference_mode():
            x = x.contiguous(memory_format=torch.channels_last)
            # In float32 the library is faster where there is much to do.
            if few is not None and images and (dtype == torch.bfloat16 or images * height * width <= limit):
                return torch.cat([few(part) for part in x.split(max(1, limit // (height * width)))])
            size = images if x.is_cuda else max(1, CACHE_BYTES // (_widest(model.spec, x) * dtype.itemsize))
            return torch.cat([network(part) for part in x.to(dtype).split(max(size, 1))]).to(own)

    return answer


def _widest(spec: NetSpec, x: Tensor) -> int:
    """About how many values the largest feature map of one image has."""
    reduction, most = spec.stem.reduction, spec.stem.width / spec.stem.stride**2
    strides_late = spec.unit.kind == "bottleneck" and spec.dialect.stride_position == "spatial"
    for _, _, shape in spec.units():
        if strides_late:
            most = max(most, shape.inner_width / reduction**2)
        reduction *= shape.stride
        most = max(most, shape.width / reduction**2)
    return max(1, int(most * x.shape[2] * x.shape[3]))


def class_maps(model: Network, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What each place of an image contributes to the logit of a class: a class activation map.

    It is exact for these networks, which end in an average over places and one linear layer: the mean of a map, plus
    the classifier's bias, is the logit.

    Source: Zhou et al., 2016, "Learning deep features for discriminative localization", Eq. 2.

    Args:
        model: in evaluation mode.
        x: (n, in_channels, h, w).
        labels: (n,) int64, a class for each image; None: the likeliest.

    Returns:
        Logits, (n, num_classes); maps, (n, h / s, w / s), s the product of all strides.
    """
    with torch.inference_mode():
        features = model.forward_features(x)
        output = model.head.classify(features)
        weights = model.head.linear.weight[output.argmax(1) if labels is None else labels]
        return output, torch.einsum("nchw,nc->nhw", features, weights)


def logits(model: Network, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision) -> tuple[Tensor, Tensor]:
    """What a network in evaluation mode answers to every image.

    Returns:
        (n, num_classes) and (n,) int64 labels, on the CPU.
    """
    answer = answering(model, precision)
    outputs, labels = zip(*((answer(x).cpu(), y.cpu()) for x, y in batches), strict=True)
    return torch.cat(outputs), torch.cat(labels)


@dataclass(frozen=True)
class Errors:
    """Exact counts over a set of images.

    Args:
        num_images: images that were evaluated, each once.
        num_wrong: of them, those whose highest logit is not the label.
        num_wrong_top5: those whose label is not among the five highest logits.
        loss: mean cross-entropy, nats.
    """

    num_images: int
    num_wrong: int
    num_wrong_top5: int
    loss: float

    @property
    def error_pct(self) -> float:
        """Share of wrong answers, per cent."""
        return 100 * self.num_wrong / self.num_images

    @property
    def top5_error_pct(self) -> float:
        """Share of images whose label is not among the five likeliest answers, per cent."""
        return 100 * self.num_wrong_top5 / self.num_images


def count_errors(output: Tensor, labels: Tensor) -> Errors:
    """Count wrong answers: (n, num_classes) and (n,) -> Errors."""
    wrong = int((output.argmax(1) != labels).sum())
    likeliest = output.topk(min(TOP, output.shape[1]), dim=1).indices
    missed = int((likeliest != labels.unsqueeze(1)).all(1).sum())
    return Errors(len(labels), wrong, missed, float(F.cross_entropy(output.double(), labels)))


def full_report(output: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Errors, a table by class, the confusion matrix and calibration, as plain data.

    Args:
        output: (n, num_classes) logits.
        labels: (n,) int64.
        classes: names by label.

    Returns:
        ``error_pct``, ``top5_error_pct``, ``num_images``, ``num_wrong``, ``loss``; ``classes`` (a list of ``name``,
        ``num_images``, ``num_wrong``, ``error_pct``, ``precision_pct``); ``confusion`` (rows: true class, columns:
        answer); ``calibration`` (``ece_pct`` and ``bins`` of confidence).
    """
    errors = count_errors(output, labels)
    truth, answer = labels.numpy(), output.argmax(1).numpy()
    confusion = np.bincount(truth * len(classes) + answer, minlength=len(classes) ** 2).reshape(len(classes), -1)
    answered = confusion.sum(0)
    table = []
    for label, name in enumerate(classes):
        images, right = int(confusion[label].sum()), int(confusion[label, label])
        table.append(
            {
                "name": name,
                "num_images": images,
                "num_wrong": images - right,
                "error_pct": 100 * (images - right) / images if images else None,
                "precision_pct": 100 * right / int(answered[label]) if answered[label] else None,
            }
        )
    return {
        "error_pct": errors.error_pct,
        "top5_error_pct": errors.top5_error_pct,
        "num_images": errors.num_images,
        "num_wrong": errors.num_wrong,
        "loss": errors.loss,
        "classes": table,
        "confusion": confusion.tolist(),
        "calibration": _calibration(output, labels),
    }


def _calibration(output: Tensor, labels: Tensor) -> dict[str, Any]:
    """Expected calibration error of the top answer (Guo et al., 2017): per cent, with the bins behind it."""
    confidence, answer = output.double().softmax(1).max(1)
    right = (answer == labels).double().numpy()
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    place = np.clip(np.digitize(confidence.numpy(), edges[1:-1], right=True), 0, CALIBRATION_BINS - 1)
    counts = np.bincount(place, minlength=CALIBRATION_BINS)
    mean_confidence = np.bincount(place, confidence.numpy(), CALIBRATION_BINS) / np.maximum(counts, 1)
    share_right = np.bincount(place, right, CALIBRATION_BINS) / np.maximum(counts, 1)
    bins = [
        {
            "from": float(edges[b]),
            "to": float(edges[b + 1]),
            "num_images": int(counts[b]),
            "confidence_pct": 100 * float(mean_confidence[b]),
            "accuracy_pct": 100 * float(share_right[b]),
        }
        for b in range(CALIBRATION_BINS)
        if counts[b]
    ]
    gap = np.abs(mean_confidence - share_right)
    return {"ece_pct": 100 * float((gap * counts).sum() / counts.sum()), "bins": bins}
