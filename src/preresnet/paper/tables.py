"""What did the paper print, and which network and recipe does each number belong to?

Every number is the test error in per cent of Tables 1 to 4; ``None`` is the paper's "fail", an error above 20 %.
Rows of other people's networks in Table 4 are not listed: they are not networks of this family.
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
        error_pct: printed test error, per cent; None where the table says "fail" (above 20 %).
        spread: printed mean +- standard deviation of five runs, where there is one.
        variant: name of a recipe that is not the paper's standard one.
    """

    table: int
    network: str
    data: str
    error_pct: float | None
    spread: str = ""
    variant: str = ""

    @property
    def recipe(self) -> str:
        """Name for `preresnet.paper.recipes.recipe`."""
        return f"{self.data}/{self.network}" + (f"-{self.variant}" if self.variant else "")


def _rows(table: int, data: str, printed: dict[str, float | None]) -> tuple[Row, ...]:
    return tuple(Row(table=table, network=name, data=data, error_pct=error) for name, error in printed.items())


TABLE_1 = _rows(
    1,
    "cifar10",
    {
        "resnet110-original": 6.61,
        "resnet110-plain": None,  # constant scaling (0, 1)
        "resnet110-original-scale-0.5-1": None,
        "resnet110-original-scale-0.5-0.5": 12.35,
        **{f"resnet110-original-exclusive-gate-{bias}": None for bias in range(6)},  # one row, "b_g = 0 to -5"
        "resnet110-original-exclusive-gate-6": 8.70,
        "resnet110-original-exclusive-gate-7": 9.81,
        "resnet110-original-shortcut-gate-0": 12.86,
        "resnet110-original-shortcut-gate-6": 6.91,
        "resnet110-original-conv1x1": 12.22,
        "resnet110-original-dropout-0.5": None,
    },
)

TABLE_2 = _rows(
    2,
    "cifar10",
    {
        "resnet110-original": 6.61,
        "resnet110-bn-after": 8.17,
        "resnet110-relu-before": 7.84,
        "resnet110-relu-only": 6.71,
        "resnet110-preact": 6.37,
        "resnet164-original": 5.93,
        "resnet164-bn-after": 6.50,
        "resnet164-relu-before": 6.14,
        "resnet164-relu-only": 5.91,
        "resnet164-preact": 5.46,
    },
)

TABLE_3 = _rows(
    3,
    "cifar10",
    {
        "resnet110-original-1layer": 9.90,
        "resnet110-preact-1layer": 8.91,
        "resnet110-original": 6.61,
        "resnet110-preact": 6.37,
        "resnet164-original": 5.93,
        "resnet164-preact": 5.46,
        "resnet1001-original": 7.61,
        "resnet1001-preact": 4.92,
    },
) + _rows(
    3,
    "cifar100",
    {
        "resnet164-original": 25.16,
        "resnet164-preact": 24.33,
        "resnet1001-original": 27.82,
        "resnet1001-preact": 22.71,
    },
)

TABLE_4 = (
    Row(table=4, network="resnet110-original", data="cifar10", error_pct=6.61),
    Row(table=4, network="resnet1202-original", data="cifar10", error_pct=7.93),
    Row(table=4, network="resnet164-preact", data="cifar10", error_pct=5.46),
    Row(table=4, network="resnet1001-preact", data="cifar10", error_pct=4.92, spread="4.89 +- 0.14"),
    # the table's dagger: mini-batch 64, by the authors' Torch code
    Row(
        table=4,
        network="resnet1001-preact",
        data="cifar10",
        error_pct=4.62,
        spread="4.69 +- 0.20",
        variant="batch64",
    ),
    Row(table=4, network="resnet164-original", data="cifar100", error_pct=25.16),
    Row(table=4, network="resnet1001-original", data="cifar100", error_pct=27.82),
    Row(table=4, network="resnet164-preact", data="cifar100", error_pct=24.33),
    Row(table=4, network="resnet1001-preact", data="cifar100", error_pct=22.71, spread="22.68 +- 0.22"),
)

ROWS: tuple[Row, ...] = TABLE_1 + TABLE_2 + TABLE_3 + TABLE_4
