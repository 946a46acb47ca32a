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
SURE = 0.9  # probability that doubts a label, however sure a network usually is
SHOWN = 24  # images that a report names, of each kind
FEWEST_TO_SCALE = 50  # images, from which on a temperature says something
Z = 1.959964  # of a 95 % interval
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


def full_report(
    output: Tensor, labels: Tensor, classes: Sequence[str], images: Sequence[str] | None = None
) -> dict[str, Any]:
    """Errors, a table by class, the confusion matrix and calibration, as plain data; and which images to look at.

    Args:
        output: (n, num_classes) logits.
        labels: (n,) int64.
        classes: names by label.
        images: what to call each image; None: nothing is said of single images.

    Returns:
        ``error_pct``, ``top5_error_pct``, ``num_images``, ``num_wrong``, ``loss``; ``classes`` (a list of ``name``,
        ``num_images``, ``num_wrong``, ``error_pct``, ``interval_pct`` (95 %, Wilson), ``precision_pct``); ``confusion``
        (rows: true class, columns: answer); ``calibration`` (``ece_pct``, ``bins`` of confidence, and ``temperature``
        with ``scaled_ece_pct``, see `_scaled`). With images: ``surest_wrong``, the wrong answers of highest
        probability, and ``doubted``, the images whose label is probably wrong (`doubts`), each with ``image``,
        ``label``, ``answer`` and ``probability`` (of the answer), `SHOWN` at most; ``num_doubted``, how many there are.
    """
    errors = count_errors(output, labels)
    truth, answer = labels.numpy(), output.argmax(1).numpy()
    confusion = np.bincount(truth * len(classes) + answer, minlength=len(classes) ** 2).reshape(len(classes), -1)
    answered = confusion.sum(0)
    table = []
    for label, name in enumerate(classes):
        seen, right = int(confusion[label].sum()), int(confusion[label, label])
        table.append(
            {
                "name": name,
                "num_images": seen,
                "num_wrong": seen - right,
                "error_pct": 100 * (seen - right) / seen if seen else None,
                "interval_pct": interval_pct(seen - right, seen) if seen else None,
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
        "calibration": _calibration(output, labels) | _scaled(output, labels),
        **({} if images is None else _to_look_at(output, labels, classes, images)),
    }


def interval_pct(wrong: int, images: int) -> list[float]:
    """95 % interval of an error from so many wrong answers, per cent (Wilson, 1927)."""
    share, spread = wrong / images, Z**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = Z * (share * (1 - share) / images + spread / (4 * images)) ** 0.5 / (1 + spread)
    return [100 * max(0.0, middle - half), 100 * min(1.0, middle + half)]


def doubts(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How doubtful labels are, judged by a network that has not seen the images.

    Source: Northcutt et al., 2021, "Confident learning": the normalised margin, and the off-diagonal of the confident
    joint (Eq. 1 and 2): an image is another class's if that class's probability reaches what is usual for its own
    images, or `SURE` where that is less, and no other class does so with a higher one.

    Args:
        probabilities: (n, num_classes).
        labels: (n,) int64.

    Returns:
        (n,) scores, from 0 (the label is sure) to 1 (another class is); (n,) bool, whether the label is probably wrong.
    """
    own = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = probabilities.scatter(1, labels.unsqueeze(1), -1.0).max(1).values
    count = torch.bincount(labels, minlength=probabilities.shape[1])
    usual = torch.zeros(probabilities.shape[1], dtype=own.dtype).index_add_(0, labels, own) / count
    usual = torch.where(count > 0, usual.clamp(max=SURE), torch.inf)  # of a class without images: never
    reached = torch.where(probabilities >= usual, probabilities, -1.0)
    likely = reached.argmax(1)
    return (1 + others - own) / 2, (likely != labels) & (reached.max(1).values >= 0)


def _to_look_at(output: Tensor, labels: Tensor, classes: Sequence[str], images: Sequence[str]) -> dict[str, Any]:
    probabilities = output.double().softmax(1)
    sure, answer = probabilities.max(1)
    score, doubted = doubts(probabilities, labels)

    def shown(places: Tensor, order: Tensor) -> list[dict[str, Any]]:
        return [
            {
                "image": images[place],
                "label": classes[int(labels[place])],
                "answer": classes[int(answer[place])],
                "probability": round(float(sure[place]), 4),
            }
            for place in places[order[places].argsort(descending=True, stable=True)][:SHOWN].tolist()
        ]

    wrong = (answer != labels).nonzero().flatten()
    doubted = (doubted & (answer != labels)).nonzero().flatten()
    return {
        "surest_wrong": shown(wrong, sure),
        "num_doubted": len(doubted),
        "doubted": shown(doubted, score),
    }


def _scaled(output: Tensor, labels: Tensor) -> dict[str, Any]:
    """What one temperature for all logits makes of the calibration (Guo et al., 2017, Section 4.2).

    ``temperature`` is fitted to all images. ``scaled_ece_pct`` is honest: each half of the images, by turns, is divided
    by the temperature of the other half.
    """
    if len(labels) < FEWEST_TO_SCALE:
        return {}
    turn = torch.arange(len(labels)) % 2 == 0
    scaled = torch.empty_like(output, dtype=torch.float64)
    for half in (turn, ~turn):
        scaled[half] = output[half].double() / temperature(output[~half], labels[~half])
    return {"temperature": temperature(output, labels), "scaled_ece_pct": _calibration(scaled, labels)["ece_pct"]}


def temperature(output: Tensor, labels: Tensor) -> float:
    """The number that logits are divided by so that their cross-entropy is least, from 0.05 to 20."""
    from scipy.optimize import minimize_scalar

    logits = output.double()

    def loss(log: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log), labels))

    found: Any = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


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
