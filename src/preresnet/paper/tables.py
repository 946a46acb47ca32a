"""What the paper printed, each number with the network and the recipe that it belongs to.

Every number of Tables 1 to 4 is the test error in per cent; ``None`` is the paper's "fail", an error above 20 %.
Table 5 has the top-1 and top-5 errors of one crop of each ImageNet validation image. Rows of other people's networks in
Tables 4 and 5 are not listed: they are not networks of this family.
"""

from pydantic.dataclasses import dataclass

from preresnet.spec import STRICT


@dataclass(frozen=True, config=STRICT)
class Row:
    """One printed number.

    Args:
        table: number of the table.
        network: name for `preresnet.paper.networks.network`.
        data: data set.
        label: the row of the table, for people.
        error_pct: printed test error, per cent; None where the table says "fail" (above 20 %). Table 5: top-1.
        spread: printed mean +- standard deviation of five runs, where there is one.
        variant: name of a recipe that is not the paper's standard one.
        top5_pct: printed top-5 error, per cent; Table 5 only.
        test_crop: height and width of the evaluated crop; Table 5 only.
    """

    table: int
    network: str
    data: str
    label: str
    error_pct: float | None
    spread: str = ""
    variant: str = ""
    top5_pct: float | None = None
    test_crop: int | None = None

    @property
    def recipe(self) -> str:
        """Name for `preresnet.paper.recipes.recipe`."""
        return f"{self.data}/{self.network}" + (f"-{self.variant}" if self.variant else "")


def _rows(table: int, data: str, printed: dict[str, tuple[str, float | None]]) -> tuple[Row, ...]:
    return tuple(
        Row(table=table, network=name, data=data, label=label, error_pct=error)
        for name, (label, error) in printed.items()
    )


FAIL_PCT = 20.0  # caption of Table 1: "fail" is a test error above 20 % on CIFAR-10

TABLE_1 = _rows(
    1,
    "cifar10",
    {
        "resnet110-original": ("original, Fig. 2(a)", 6.61),
        "resnet110-plain": ("constant scaling (0, 1): no shortcut", None),
        "resnet110-original-scale-0.5-1": ("constant scaling (0.5, 1)", None),
        "resnet110-original-scale-0.5-0.5": ("constant scaling (0.5, 0.5)", 12.35),
        **{  # one row of the table, "b_g = 0 to -5"
            f"resnet110-original-exclusive-gate-{bias}": (f"exclusive gating, b = {-bias}", None) for bias in range(6)
        },
        "resnet110-original-exclusive-gate-6": ("exclusive gating, b = -6", 8.70),
        "resnet110-original-exclusive-gate-7": ("exclusive gating, b = -7", 9.81),
        "resnet110-original-shortcut-gate-0": ("shortcut-only gating, b = 0", 12.86),
        "resnet110-original-shortcut-gate-6": ("shortcut-only gating, b = -6", 6.91),
        "resnet110-original-conv1x1": ("1x1 convolution on the shortcut", 12.22),
        "resnet110-original-dropout-0.5": ("dropout 0.5 on the shortcut", None),
    },
)

TABLE_2 = _rows(
    2,
    "cifar10",
    {
        "resnet110-original": ("110 layers, original", 6.61),
        "resnet110-bn-after": ("110 layers, BN after addition", 8.17),
        "resnet110-relu-before": ("110 layers, ReLU before addition", 7.84),
        "resnet110-relu-only": ("110 layers, ReLU-only pre-activation", 6.71),
        "resnet110-preact": ("110 layers, full pre-activation", 6.37),
        "resnet164-original": ("164 layers, original", 5.93),
        "resnet164-bn-after": ("164 layers, BN after addition", 6.50),
        "resnet164-relu-before": ("164 layers, ReLU before addition", 6.14),
        "resnet164-relu-only": ("164 layers, ReLU-only pre-activation", 5.91),
        "resnet164-preact": ("164 layers, full pre-activation", 5.46),
    },
)

TABLE_3 = _rows(
    3,
    "cifar10",
    {
        "resnet110-original-1layer": ("CIFAR-10, 110 layers, one a unit, original", 9.90),
        "resnet110-preact-1layer": ("CIFAR-10, 110 layers, one a unit, pre-activation", 8.91),
        "resnet110-original": ("CIFAR-10, 110 layers, original", 6.61),
        "resnet110-preact": ("CIFAR-10, 110 layers, pre-activation", 6.37),
        "resnet164-original": ("CIFAR-10, 164 layers, original", 5.93),
        "resnet164-preact": ("CIFAR-10, 164 layers, pre-activation", 5.46),
        "resnet1001-original": ("CIFAR-10, 1001 layers, original", 7.61),
        "resnet1001-preact": ("CIFAR-10, 1001 layers, pre-activation", 4.92),
    },
) + _rows(
    3,
    "cifar100",
    {
        "resnet164-original": ("CIFAR-100, 164 layers, original", 25.16),
        "resnet164-preact": ("CIFAR-100, 164 layers, pre-activation", 24.33),
        "resnet1001-original": ("CIFAR-100, 1001 layers, original", 27.82),
        "resnet1001-preact": ("CIFAR-100, 1001 layers, pre-activation", 22.71),
    },
)

TABLE_4 = (
    *_rows(
        4,
        "cifar10",
        {
            "resnet110-original": ("CIFAR-10, 110 layers, original", 6.61),
            "resnet1202-original": ("CIFAR-10, 1202 layers, original", 7.93),
            "resnet164-preact": ("CIFAR-10, 164 layers, pre-activation", 5.46),
        },
    ),
    Row(
        table=4,
        network="resnet1001-preact",
        data="cifar10",
        label="CIFAR-10, 1001 layers, pre-activation",
        error_pct=4.92,
        spread="4.89 +- 0.14",
    ),
    # the table's dagger: mini-batch 64, by the authors' Torch code
    Row(
        table=4,
        network="resnet1001-preact",
        data="cifar10",
        label="CIFAR-10, 1001 layers, pre-activation, batch 64 (dagger)",
        error_pct=4.62,
        spread="4.69 +- 0.20",
        variant="batch64",
    ),
    *_rows(
        4,
        "cifar100",
        {
            "resnet164-original": ("CIFAR-100, 164 layers, original", 25.16),
            "resnet1001-original": ("CIFAR-100, 1001 layers, original", 27.82),
            "resnet164-preact": ("CIFAR-100, 164 layers, pre-activation", 24.33),
        },
    ),
    Row(
        table=4,
        network="resnet1001-preact",
        data="cifar100",
        label="CIFAR-100, 1001 layers, pre-activation",
        error_pct=22.71,
        spread="22.68 +- 0.22",
    ),
)


def _imagenet(network: str, label: str, top1: float, top5: float, test_crop: int = 320, variant: str = "") -> Row:
    return Row(
        table=5,
        network=network,
        data="imagenet",
        label=label,
        error_pct=top1,
        variant=variant,
        top5_pct=top5,
        test_crop=test_crop,
    )


TABLE_5 = (
    _imagenet("resnet152-original", "152 layers, original, tested at 224", 23.0, 6.7, test_crop=224),
    _imagenet("resnet152-original", "152 layers, original", 21.3, 5.5),
    _imagenet("resnet152-preact", "152 layers, pre-activation", 21.1, 5.5),
    _imagenet("resnet200-original", "200 layers, original", 21.8, 6.0),
    _imagenet("resnet200-preact", "200 layers, pre-activation", 20.7, 5.3),
    # the table's dagger: trained by fb.resnet.torch
    _imagenet("resnet200-preact", "200 layers, pre-activation, scale and aspect ratio", 20.1, 4.8, variant="aspect"),
)


ROWS: tuple[Row, ...] = TABLE_1 + TABLE_2 + TABLE_3 + TABLE_4 + TABLE_5


def printed(recipe: str) -> Row | None:
    """The row that first prints a number for a recipe: of two test crops the larger, which training evaluates."""
    return max((row for row in ROWS if row.recipe == recipe), key=lambda row: row.test_crop or 0, default=None)
