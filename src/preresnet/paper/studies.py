"""The rows that make up each table and figure of the paper."""

import difflib
from fnmatch import fnmatchcase

from pydantic.dataclasses import dataclass

from preresnet.paper.tables import TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, Row
from preresnet.spec import STRICT, UserError


@dataclass(frozen=True, config=STRICT)
class Study:
    """A table or figure as a list of rows.

    Args:
        name: what `preresnet reproduce` calls it.
        title: for people.
        rows: in the order in which the paper prints or draws them.
    """

    name: str
    title: str
    rows: tuple[Row, ...]


def _pick(rows: tuple[Row, ...], *networks: str, data: str = "cifar10") -> tuple[Row, ...]:
    by_name = {row.network: row for row in rows if row.data == data}
    return tuple(by_name[name] for name in networks)


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study("table1", "Table 1: shortcuts, 110 layers", TABLE_1),
        Study("table2", "Table 2: orders of activation", TABLE_2),
        Study("table3", "Table 3: original and pre-activation", TABLE_3),
        Study("table4", "Table 4: the best results", TABLE_4),
        Study("table5", "Table 5: ImageNet", TABLE_5),
        Study(
            "figure1",
            "Figure 1: 1001 layers, training curves",
            _pick(TABLE_3, "resnet1001-original", "resnet1001-preact"),
        ),
        Study(
            "figure3",
            "Figure 3: shortcuts, training curves",
            _pick(
                TABLE_1,
                "resnet110-original",
                "resnet110-original-scale-0.5-0.5",
                "resnet110-original-exclusive-gate-6",
                "resnet110-original-shortcut-gate-0",
                "resnet110-original-conv1x1",
            ),
        ),
        Study(
            "figure6",
            "Figure 6: BN after addition, and pre-activation, training curves",
            _pick(TABLE_2, "resnet110-original", "resnet110-bn-after", "resnet164-original", "resnet164-preact"),
        ),
    )
}


def study(name: str) -> Study:
    """A table or figure by name.

    Raises:
        ValueError: no such study.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(STUDIES)}"
        raise UserError(f"no study {name!r}; {hint}")
    return STUDIES[name]


def chosen(rows: tuple[Row, ...], patterns: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows that are asked for, in their own order.

    Args:
        rows: of a study.
        patterns: each the name of a row, recipe or network, or a pattern with ``*``; none chooses all.

    Raises:
        ValueError: a pattern fits no row.
    """
    fits = {
        pattern: [
            row for row in rows if any(fnmatchcase(name, pattern) for name in (row_name(row), row.recipe, row.network))
        ]
        for pattern in patterns
    }
    for pattern, found in fits.items():
        if not found:
            names = list(dict.fromkeys(row.network for row in rows))
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UserError(f"no row {pattern!r}{hint} The rows are {', '.join(names)}; * stands for anything")
    return tuple(row for row in rows if not patterns or any(row in found for found in fits.values()))


def row_name(row: Row) -> str:
    """What folders and records call a row: its recipe with ``-`` for ``/``.

    A row that only tests what another row trains names its crop too.
    """
    crop = f"-crop{row.test_crop}" if row.test_crop not in (None, 320) else ""
    return row.recipe.replace("/", "-") + crop
