"""``study.json``: one schema, files of the first version, damaged files."""

import json
from pathlib import Path
from typing import Any

import pytest
from report_folders import make_study

from preresnet.cli import main
from preresnet.spec import UserError
from preresnet.study import manifest
from preresnet.study.manifest import STUDY_FILE


def first_version(folder: Path, **changes: Any) -> Path:
    """A file as the first version wrote it: of a study at another depth, with a run whose loss was not finite."""
    run = {"seed": 0, "folder": "a/seed0", "error_pct": 59.0, "top5_error_pct": None, "message": ""}
    lost = {"seed": 1, "folder": "a/seed1", "error_pct": None, "message": "the loss was nan at step 7"}
    numbers = {"n": 2, "errors": [59.0], "median": None, "mean": None, "std": None, "interval": None, "failed": 2}
    row = {
        "row": "cifar10-resnet20-original",
        "label": "110 layers, original (here resnet20-original)",
        "recipe": "cifar10/resnet110-original",
        "network": "resnet20-original",
        "data": "cifar10",
        "paper": {"error_pct": 6.61, "top5_error_pct": None, "fail": False, "spread": ""},
        "runs": [run | {"status": "done"}, lost | {"status": "failed"}],
        "statistics": numbers,
    }
    claim = {"text": "worse, 110 layers", "source": "", "better": "a", "worse": "b", "kind": "lower error"}
    content = {
        "study": "table2",
        "title": "Table 2 (shortened: depth=20)",
        "scale": {"depth": 20},
        "rows": [row],
        "command": "preresnet reproduce table2",
        "differences": [],
        "claims": [claim | {"answer": "not enough runs", "evidence": ""}],
    }
    (folder / "a" / "seed1").mkdir(parents=True)
    (folder / "a" / "seed1" / "diverged.json").write_text("{}")
    (folder / STUDY_FILE).write_text(json.dumps(content | changes))
    return folder


def test_the_first_version_is_read(tmp_path: Path) -> None:
    found = manifest.read(first_version(tmp_path / "short"))
    (row,) = found.rows
    assert row.label == "20 layers, original (here resnet20-original)"
    assert found.claims[0].text == "worse, 20 layers"
    assert [run.status for run in row.runs] == ["done", "diverged"]
    assert row.statistics is not None
    assert (row.statistics.diverged, row.statistics.failed) == (1, None)
    full = manifest.read(first_version(tmp_path / "full", scale=None)).rows[0].statistics
    assert full is not None
    assert (full.diverged, full.failed) == (1, 2)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    found = manifest.read(make_study(tmp_path))
    manifest.write(tmp_path, found)
    assert manifest.read(tmp_path) == found
    text = (tmp_path / STUDY_FILE).read_text()
    (tmp_path / STUDY_FILE).write_text(text, encoding="utf-8-sig")  # as an editor may leave it
    assert manifest.read(tmp_path) == found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"study": "table1", ',
        b"[1, 2]",
        b'"table1"',
        b'{"study": "table1", "title": "caf\xe9"}',
        '{"study": "table1"}'.encode("utf-16"),
        b'{"study": "table1", "title": "T", "command": "", "rows": [{"row": 1}]}',
        b'{"study": "table1", "title": "T", "command": "", "rows": [], "version": 99}',
        b'{"study": "table1", "title": "T", "command": "", "rows": [], "version": "new"}',
    ],
)
def test_a_damaged_or_unknown_file_is_named(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / STUDY_FILE).write_bytes(content)
    with pytest.raises(UserError):
        manifest.read(tmp_path)
    for given in (["report", str(tmp_path)], ["sweep", "digits/resnet20-preact", "--vary", "lr=0.1,0.2"]):
        more = ["--out", str(tmp_path)] if given[0] == "sweep" else []
        assert main([*given, *more]) == 2
        said = capsys.readouterr().err
        assert str(tmp_path / STUDY_FILE) in said
        assert said.count("\n") == 1
    assert (tmp_path / STUDY_FILE).read_bytes() == content
