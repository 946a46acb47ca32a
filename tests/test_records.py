"""Tables of results are those of the records. ``python tests/test_records.py --write`` makes them anew."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preresnet.study import records
from preresnet.study.manifest import DIVERGED_FILE, Manifest, RowEntry, RunEntry, Status

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "records"


PAGES: dict[Path, tuple[str, str, Callable[[Path], str]]] = {
    RECORDS / "README.md": (records.START, records.END, records.results),
    ROOT / "README.md": (records.SHORT_START, records.SHORT_END, records.short_results),
}


def split(page: Path) -> tuple[str, str, str] | None:
    """A page before, in and after its generated part; None where it has none."""
    text, (start, end, _) = page.read_text(), PAGES[page]
    if start not in text:
        return None
    before, rest = text.split(start)
    inside, after = rest.split(end)
    return before + start, inside, end + after


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_results_in_a_page_are_the_records(page: Path) -> None:
    parts = split(page)
    if parts is None:
        assert page.parent == ROOT, "records/README.md has lost its markers"
        pytest.skip("README has no generated part")
    words = "python tests/test_records.py --write makes them agree"
    assert parts[1].strip() == PAGES[page][2](RECORDS).strip(), words


def test_links_of_the_records_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", (RECORDS / "README.md").read_text())
    assert len(links) > 40
    assert [link for link in links if not (RECORDS / link).exists()] == []


def test_every_record_of_a_run_holds_what_repeats_it() -> None:
    paths = sorted((ROOT / "records").glob("*/*/seed*.json"))
    assert paths
    for path in paths:
        found = json.loads(path.read_text())
        assert found["command"].startswith("preresnet ")
        assert f"seed{found['seed']}" == path.stem
        assert {"recipe", "network", "device", "versions", "name"} <= found.keys()


@pytest.fixture
def known() -> dict[str, Any]:
    path = ROOT / "records" / "small" / "cifar10-resnet20-preact" / "seed0.json"
    return json.loads(path.read_text())


def put(folder: Path, known: dict[str, Any], place: str, **changes: Any) -> None:
    path = folder / "records" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known | changes))


def of_network(known: dict[str, Any], network: str) -> dict[str, Any]:
    return {"name": f"cifar10/{network}", "recipe": known["recipe"] | {"network": network}}


def test_full_and_shortened_results_are_apart(tmp_path: Path, known: dict[str, Any]) -> None:
    preact = of_network(known, "resnet110-preact")
    for seed, error in enumerate((6.3, 6.5, 6.4)):
        put(tmp_path, known, f"table2/cifar10-resnet110-preact/seed{seed}.json", **preact, error_pct=error)
    short = preact | {"name": preact["name"] + ", shortened: steps=2000", "error_pct": 30.0}
    put(tmp_path, known, "table2-scaled-steps2000-batch64/cifar10-resnet110-preact/seed0.json", **short)
    plain = of_network(known, "resnet110-plain") | {"error_pct": None, "message": "the loss was nan at step 7"}
    put(tmp_path, known, "table1/cifar10-resnet110-plain/seed0.json", **plain)
    changed = preact | {"recipe": preact["recipe"] | {"global_batch": 64}, "error_pct": 7.0}
    put(tmp_path, known, "own/cifar10-resnet110-preact/seed0.json", **changed)

    full, _, shortened = records.results(tmp_path / "records").partition("Shortened runs")
    rows = [line.strip("| ").split(" | ") for line in full.splitlines() if "`" in line]
    assert [row[0] for row in rows] == [
        "table1: `cifar10/resnet110-plain`",
        "table2: `cifar10/resnet110-preact`",
        "own: `cifar10/resnet110-preact`",
    ]
    assert rows[0][1:4] == ["fail", "1 of 1 diverged", "1"]
    assert rows[1][1:5] == ["6.37", "median 6.40 (6.40 ± 0.10)", "3", "64,000"]
    assert rows[2][1:3] == ["", "7.00"]  # another recipe than the paper's: nothing printed belongs beside it
    assert "(table2/cifar10-resnet110-preact/seed2.json)" in rows[1][-1]
    assert "| table2: `cifar10/resnet110-preact` | steps 2000, batch 64 | 30.00 | 1 |" in shortened
    assert "6.37" not in shortened


def test_records_are_copied_once(tmp_path: Path) -> None:
    out, place = tmp_path / "study", tmp_path / "records"
    statuses: tuple[Status, ...] = ("done", "diverged", "failed", "waiting")
    runs = tuple(RunEntry(seed, f"a/seed{seed}", status) for seed, status in enumerate(statuses))
    for run, file in zip(runs, ("result.json", DIVERGED_FILE, "", ""), strict=True):
        (out / run.folder).mkdir(parents=True)
        if file:
            (out / run.folder / file).write_text(f'{{"seed": {run.seed}}}')
    row = RowEntry("a", "a", "cifar10/a", "a", "cifar10", None, runs)
    found = Manifest("table1", "Table 1", "", (row,), {"steps": 10, "depth": 20})
    folder = place / "table1-scaled-steps10-depth20" / "a"
    written = [folder / "seed0.json", folder / "seed1.json"]
    assert records.keep(out, found, place) == (written, [])
    assert records.keep(out, found, place) == ([], [])
    written[0].write_text("another result")
    assert records.keep(out, found, place) == ([], [written[0]])
    assert written[0].read_text() == "another result"


def test_the_short_table_counts_the_papers_rows(tmp_path: Path, known: dict[str, Any]) -> None:
    preact = of_network(known, "resnet110-preact")
    put(tmp_path, known, "table2/cifar10-resnet110-preact/seed0.json", **preact, error_pct=6.4)
    put(tmp_path, known, "table1-scaled-steps2000/cifar10-resnet110-plain/seed0.json", **preact, error_pct=88.0)
    put(tmp_path, known, "own/mine/seed0.json", **preact, error_pct=7.0)
    found = records.short_results(tmp_path / "records")
    assert "| `cifar10/resnet110-preact` | 1 | 1 |  | 6.37 | 6.40 (1 seed) |" in found
    assert "| Table 1: shortcuts, 110 layers | 16 | 0 | 1 |" in found
    assert "| Table 2: orders of activation | 10 | 1 | 0 |" in found
    assert "88.00" not in found


if __name__ == "__main__" and "--write" in sys.argv:
    for page, (_, _, made) in PAGES.items():
        parts = split(page)
        if parts is not None:
            page.write_text(f"{parts[0]}\n{made(RECORDS)}{parts[2]}")
