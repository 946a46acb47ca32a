"""The paper's studies and claims as data."""

from pathlib import Path

import pytest

from preresnet.paper.claims import CLAIMS, Claim
from preresnet.paper.networks import at_depth, network
from preresnet.paper.studies import STUDIES, chosen, row_name, study
from preresnet.paper.tables import FAIL_PCT, ROWS, TABLE_5, Row

BY_RECIPE: dict[str, Row] = {row.recipe: row for row in ROWS}  # of two crops the larger


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_a_claim_agrees_with_what_was_printed(claim: Claim) -> None:
    better, worse = BY_RECIPE[claim.better], BY_RECIPE[claim.worse]
    assert better.error_pct is not None
    if claim.kind == "fails":
        assert worse.error_pct is None
        assert better.error_pct < FAIL_PCT
    elif claim.kind == "lower error":
        assert worse.error_pct is not None
        assert better.error_pct < worse.error_pct


def test_claims_are_told_apart() -> None:
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)
    assert len({(claim.better, claim.worse, claim.kind) for claim in CLAIMS}) == len(CLAIMS)


def test_every_claim_can_be_answered_by_a_study() -> None:
    studies = [{row.recipe for row in one.rows} for one in STUDIES.values()]
    for claim in CLAIMS:
        assert any({claim.better, claim.worse} <= rows for rows in studies), claim.text


def test_every_row_that_the_paper_calls_failed_is_claimed_to_fail() -> None:
    failed = {row.recipe for row in ROWS if row.error_pct is None}
    assert {claim.worse for claim in CLAIMS if claim.kind == "fails"} == failed


def test_table_5() -> None:
    """Top-1 and top-5 as printed, and networks that exist."""
    printed = [(23.0, 6.7), (21.3, 5.5), (21.1, 5.5), (21.8, 6.0), (20.7, 5.3), (20.1, 4.8)]
    assert [(row.error_pct, row.top5_pct) for row in TABLE_5] == printed
    assert [row.test_crop for row in TABLE_5] == [224, 320, 320, 320, 320, 320]
    assert {network(row.network).num_classes for row in TABLE_5} == {1000}


def test_every_table_is_a_study_and_its_rows_have_names_of_their_own() -> None:
    assert list(STUDIES) == ["table1", "table2", "table3", "table4", "table5", "figure1", "figure3", "figure6"]
    for number in range(1, 6):
        assert STUDIES[f"table{number}"].rows == tuple(row for row in ROWS if row.table == number)
    for one in STUDIES.values():
        assert len({row_name(row) for row in one.rows}) == len({row.label for row in one.rows}) == len(one.rows)
    assert [row.network for row in study("figure6").rows] == [
        "resnet110-original",
        "resnet110-bn-after",
        "resnet164-original",
        "resnet164-preact",
    ]


def test_rows_are_chosen_by_name_or_pattern() -> None:
    rows = study("table2").rows
    assert len(chosen(rows, ())) == 10
    assert [row.network for row in chosen(rows, ("resnet164-preact", "cifar10/resnet110-original"))] == [
        "resnet110-original",
        "resnet164-preact",
    ]
    assert len(chosen(rows, ("*110*",))) == 5
    with pytest.raises(ValueError, match="did you mean 'resnet110-preact'"):
        chosen(rows, ("resnet110-preac",))
    with pytest.raises(ValueError, match="did you mean 'table1'"):
        study("tabel1")


@pytest.mark.parametrize(
    ("name", "depth", "expected"),
    [
        ("resnet110-original-exclusive-gate-6", 20, "resnet20-original-exclusive-gate-6"),
        ("resnet164-preact", 29, "resnet29-preact"),
        ("resnet164-preact", 20, "resnet20-preact-bottleneck"),
        ("resnet164-preact", 164, "resnet164-preact"),
        ("resnet110-preact", 164, "resnet164-preact-basic"),
        ("resnet110-preact", 50, "resnet50-preact-basic"),
        ("resnet110-preact-1layer", 20, "resnet20-preact-1layer"),
        ("resnet110-plain", 20, "resnet20-plain"),
        ("resnet110-preact-projected", 20, "resnet20-preact-projected"),
        ("resnet200-preact", 50, "resnet50-preact"),
    ],
)
def test_a_network_at_another_depth_keeps_its_kind_of_unit(name: str, depth: int, expected: str) -> None:
    assert at_depth(name, depth) == expected
    before, after = network(name), network(expected)
    assert (after.depth, after.unit) == (depth, before.unit)


def test_a_depth_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="9n\\+2"):
        at_depth("resnet164-preact", 32)
    with pytest.raises(ValueError, match="no ImageNet network of 110 layers"):
        at_depth("resnet200-preact", 110)


def test_the_page_of_printed_numbers_has_table_5() -> None:
    page = (Path(__file__).parents[1] / "docs" / "guide" / "paper.md").read_text()
    for row in TABLE_5:
        assert f"| `{row.recipe}` | {row.error_pct} | {row.top5_pct} | {row.label} |" in page
