"""The orderings that the paper's text draws from its tables and figures.

In our own words. Rows are named by recipe. Text and numbers: Sections 3 and 4, Tables 1 to 5, Figures 1, 3 and 6.
"""

from typing import Literal

from pydantic.dataclasses import dataclass

from preresnet.spec import STRICT

Kind = Literal["lower error", "fails", "lower training loss", "lower early training loss"]


@dataclass(frozen=True, config=STRICT)
class Claim:
    """One ordering of two rows.

    Args:
        text: what is claimed.
        source: where.
        better: recipe of the row that is said to be better.
        worse: recipe of the row that is said to be worse; with ``fails``, the row that fails.
        kind: ``lower error``: at the last step; ``fails``: the error of ``worse`` stays above 20 % and that of
            ``better`` does not; ``lower training loss``: at the end of training; ``lower early training loss``: over
            its first tenth.
    """

    text: str
    source: str
    better: str
    worse: str
    kind: Kind = "lower error"


def _on(data: str, better: str, worse: str, text: str, source: str, kind: Kind = "lower error") -> Claim:
    return Claim(text=text, source=source, better=f"{data}/{better}", worse=f"{data}/{worse}", kind=kind)


_BASE = "resnet110-original"
_FIG_3 = {
    f"{_BASE}-scale-0.5-0.5": "Constant scaling (0.5, 0.5)",
    f"{_BASE}-exclusive-gate-6": "Exclusive gating, b = -6,",
    f"{_BASE}-shortcut-gate-0": "Shortcut-only gating, b = 0,",
    f"{_BASE}-conv1x1": "A 1x1 convolution on the shortcut",
}
_FAILING = {
    "resnet110-plain": "Without shortcuts, 110 layers fail",
    f"{_BASE}-scale-0.5-1": "Scaling the shortcut alone by 0.5 fails",
    **{f"{_BASE}-exclusive-gate-{bias}": f"Exclusive gating fails with b = {-bias}" for bias in range(6)},
    f"{_BASE}-dropout-0.5": "Dropout on the shortcut fails",
}

SHORTCUTS = (
    *(_on("cifar10", _BASE, row, text, "Section 3, Table 1", "fails") for row, text in _FAILING.items()),
    *(
        _on("cifar10", _BASE, row, f"{text} has a higher error than the identity", "Section 3, Table 1")
        for row, text in _FIG_3.items()
    ),
    _on(
        "cifar10",
        f"{_BASE}-exclusive-gate-6",
        f"{_BASE}-exclusive-gate-7",
        "Exclusive gating depends on its initial bias: -6 is better than -7",
        "Section 3, Table 1",
    ),
    _on(
        "cifar10",
        f"{_BASE}-shortcut-gate-6",
        f"{_BASE}-shortcut-gate-0",
        "Shortcut-only gating that starts near the identity (b = -6) is better than with b = 0",
        "Section 3, Table 1",
    ),
    *(
        _on(
            "cifar10",
            _BASE,
            row,
            f"{text} ends with a higher training loss",
            "Section 3, Fig. 3",
            "lower training loss",
        )
        for row, text in _FIG_3.items()
    ),
)

ACTIVATIONS = (
    *(
        _on(
            "cifar10",
            f"resnet{depth}-original",
            f"resnet{depth}-{order}",
            f"{words} is worse than the original unit, {depth} layers",
            "Section 4, Table 2",
        )
        for depth in (110, 164)
        for order, words in (("bn-after", "BN after addition"), ("relu-before", "ReLU before addition"))
    ),
    _on(
        "cifar10",
        _BASE,
        "resnet110-bn-after",
        "With BN after addition the training loss is slow to fall at the beginning",
        "Section 4, Fig. 6 left",
        "lower early training loss",
    ),
    *(
        _on(
            "cifar10",
            f"resnet{depth}-preact",
            f"resnet{depth}-relu-only",
            f"Full pre-activation, the best of the five orders, is better than ReLU-only, {depth} layers",
            "Table 2",
        )
        for depth in (110, 164)
    ),
)

_PAIRS = (
    ("cifar10", "110", "-1layer", "110 layers, one a unit, CIFAR-10"),
    ("cifar10", "110", "", "110 layers, CIFAR-10"),
    ("cifar10", "164", "", "164 layers, CIFAR-10"),
    ("cifar10", "1001", "", "1001 layers, CIFAR-10"),
    ("cifar100", "164", "", "164 layers, CIFAR-100"),
    ("cifar100", "1001", "", "1001 layers, CIFAR-100"),
)

PREACTIVATION = (
    *(
        _on(
            data,
            f"resnet{depth}-preact{unit}",
            f"resnet{depth}-original{unit}",
            f"Full pre-activation is better than the original unit, {words}",
            "Tables 2 and 3",
        )
        for data, depth, unit, words in _PAIRS
    ),
    _on(
        "cifar10",
        "resnet1001-preact",
        "resnet1001-original",
        "At 1001 layers the training loss of the original unit is slow to fall at the beginning",
        "Fig. 1",
        "lower early training loss",
    ),
    _on(
        "cifar10",
        "resnet1001-preact",
        "resnet1001-original",
        "At 1001 layers full pre-activation ends with the lower training loss",
        "Fig. 1",
        "lower training loss",
    ),
    # with a lower error at a higher training loss, the paper says that its norms regularise
    *(
        _on(
            data,
            f"resnet{depth}-original{unit}",
            f"resnet{depth}-preact{unit}",
            f"Full pre-activation ends with the higher training loss, {words}",
            "Fig. 6 right",
            "lower training loss",
        )
        for data, depth, unit, words in _PAIRS
        if depth != "1001"
    ),
)

IMAGENET = (
    _on(
        "imagenet",
        "resnet152-original",
        "resnet200-original",
        "Original units overfit with 200 layers: they are worse than with 152",
        "Table 5",
    ),
    _on(
        "imagenet",
        "resnet200-preact",
        "resnet200-original",
        "Full pre-activation is better than the original unit, 200 layers, ImageNet",
        "Table 5",
    ),
)

CLAIMS: tuple[Claim, ...] = SHORTCUTS + ACTIVATIONS + PREACTIVATION + IMAGENET
