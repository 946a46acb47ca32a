"""A report as one page that opens anywhere, with its pictures beside it."""

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preresnet.pictures import curves, heatmaps
from preresnet.report import drawings, gather
from preresnet.report.content import RowContent, RunContent, StudyContent
from preresnet.report.drawings import MARK, Picture
from preresnet.spec import UserError
from preresnet.train import checkpoint

PAGE_FILE, FIGURES_FOLDER = "report.html", "figures"
NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_WORDS = {
    "done": "finished",
    "diverged": "diverged",
    "failed": "failed",
    "running": "not finished",
    "waiting": "not started",
}


@dataclass(frozen=True)
class ShownNetwork:
    """The trained network of a row that is shown closely: its run and the pictures of its answers."""

    run: RunContent
    pictures: dict[str, Picture]
    recipe: dict[str, str]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class ShownStudy:
    """A study with its pictures, by the names of its rows."""

    study: StudyContent
    ident: str
    curves: dict[str, Picture]
    signals: dict[str, Picture]
    networks: dict[str, ShownNetwork]


def write(folders: Sequence[Path], out: Path | None = None) -> tuple[Path, Path, int]:
    """Write the report of folders: one HTML page, and its pictures as PNG and SVG in ``figures`` beside it.

    The page needs nothing but itself. The same folders give the same bytes.

    Args:
        folders: of studies (``study.json``) and of runs.
        out: the page; ``report.html`` in the first folder by default.

    Returns:
        The page, the folder of the pictures, and how many pictures there are.

    Raises:
        ValueError: a folder holds neither, or a file in the way was not written by a report. Nothing was written.
    """
    studies = gather.gather(folders)
    out = out or folders[0] / PAGE_FILE
    drawings.require_ours(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{out.parent} cannot be written to ({error.strerror}); give another --out") from None
    shown = list(_shown(studies))
    pictures = [picture for one in shown for picture in _pictures(one)]
    drawings.write(pictures, out.parent / FIGURES_FOLDER)
    text = _render(shown, folders)
    content = text.encode("utf-8", "backslashreplace")  # names in another encoding have halves of characters
    checkpoint.write_atomically(out, lambda path: path.write_bytes(content))
    return out, out.parent / FIGURES_FOLDER, len(pictures)


def _shown(studies: Sequence[StudyContent]) -> Iterator[ShownStudy]:
    taken = {"main"}  # ids of the page, and names of pictures' files
    for study in studies:
        ident = _unused(_slug(study.manifest.study), taken)
        names = {row.entry.row: _unused(f"{ident}-{_slug(row.entry.row)}", taken) for row in study.rows}
        yield ShownStudy(study, ident, _curves(study, names), _signals(study, names), _networks(study, names))


def _curves(study: StudyContent, names: Mapping[str, str]) -> dict[str, Picture]:
    """A picture for each row, beside the original where the study has it, or of the original alone."""
    beside = {row.entry.row: study.beside(row) for row in study.rows}
    with_lines = {row.entry.row: any(run.lines for run in row.runs) for row in study.rows}
    shown_beside = {other.entry.row for row, other in beside.items() if other is not None and with_lines[row]}
    found = {}
    for row in study.rows:
        name = row.entry.row
        if with_lines[name] and name not in shown_beside:
            other = beside[name]
            other = other if other is not None and with_lines[other.entry.row] else None
            found[name] = drawings.training(f"{names[name]}-curves", row, other)
    return found


def _signals(study: StudyContent, names: Mapping[str, str]) -> dict[str, Picture]:
    """A picture of each row with a run that was probed along training, all in the same colours."""
    probed = [(row.entry, run) for row in study.rows if (run := row.probed) is not None]
    runs = [run for _, run in probed]
    return {
        row.row: drawings.signal(f"{names[row.row]}-signal", f"{row.label}, seed {run.entry.seed}", run, runs)
        for row, run in probed
    }


def _networks(study: StudyContent, names: Mapping[str, str]) -> dict[str, ShownNetwork]:
    found = {}
    for row in study.rows:
        run, entry = row.middle, row.entry
        if run is None or not run.result:
            continue
        pictures = {}
        if run.evaluation is not None:
            pictures = drawings.of_answers(names[entry.row], f"{entry.label}, seed {run.entry.seed}", run.evaluation)
        commands = dict.fromkeys(one.result["command"] for one in row.runs if one.result.get("command"))
        found[entry.row] = ShownNetwork(run, pictures, gather.flat(run.result.get("recipe") or {}), tuple(commands))
    return found


def _pictures(shown: ShownStudy) -> Iterator[Picture]:
    yield from shown.curves.values()
    yield from shown.signals.values()
    for network in shown.networks.values():
        yield from network.pictures.values()


def _render(shown: Sequence[ShownStudy], folders: Sequence[Path]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"pct": _pct, "signed": _signed, "number": _number, "short": _short}
    environment.filters |= {"words": _WORDS.__getitem__, "split": curves.split_words, "quoted": _quoted}
    environment.globals |= {"points": _points, "summary": _summary, "machines": _machines, "mistakes": _mistakes}
    environment.globals |= {"depths": _depths}
    title = shown[0].study.manifest.title + (f", and {len(shown) - 1} more" if len(shown) > 1 else "")
    template = environment.get_template("report.html.j2")
    return template.render(shown=shown, title=title, folders=[str(place) for place in folders], mark=MARK)


def _summary(study: StudyContent) -> str:
    """What was run, in a sentence or two."""
    runs = [run for row in study.rows for run in row.runs]
    counts = {word: sum(run.entry.status == status for run in runs) for status, word in _WORDS.items()}
    data = ", ".join(dict.fromkeys(row.entry.data for row in study.rows))
    steps = sorted({run.result["steps"] for run in runs if "steps" in run.result})
    length = f", {' or '.join(f'{one:,}' for one in steps)} steps each" if steps else ""
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return (
        f"{_count(len(study.rows), 'row')} on {data}, {_count(len(runs), 'run')} in all{length}: {told}. "
        f"Every error is that of a run's last step."
    )


def _machines(study: StudyContent) -> list[str]:
    """Hardware and versions of the runs, each once."""
    found = []
    for run in (run for row in study.rows for run in row.runs):
        versions = run.result.get("versions", {})
        words = [run.result.get("device", ""), run.result.get("precision", "")]
        words += [f"{name} {value}" for name, value in versions.items() if value]
        found.append(", ".join(word for word in words if word))
    return [one for one in dict.fromkeys(found) if one]


def _depths(run: RunContent) -> list[list[float | None]]:
    """What heat maps show, as a table: step; signal, residual, gradient at both ends; straight share at the first."""
    return [
        [
            line["step"],
            *(line[key][unit] for key in ("x_rms", "residual_rms", "gradient") for unit in (0, -1)),
            heatmaps.shares(line)[0],
        ]
        for line in run.probes
    ]


def _points(rows: Sequence[RowContent]) -> list[list[float | None]]:
    """What curves show, as a table: step, then median loss and error of each row, where any error was measured."""
    columns = []
    for row in rows:
        seeds = [curves.measured(run.lines) for run in row.runs if run.lines]
        done = [curves.measured(run.lines) for run in row.runs if run.lines and run.entry.status == "done"]
        columns += [dict(curves.median([getattr(seed, name) for seed in done or seeds])) for name in ("loss", "error")]
    steps = sorted({step for column in columns[1::2] for step in column})
    return [[step, *(column.get(step) for column in columns)] for step in steps]


def _mistakes(evaluation: dict[str, Any], most: int = 50) -> list[tuple[str, str, int]]:
    """True class, answer and number of images, most frequent first."""
    names = [entry["name"] for entry in evaluation["classes"]]
    found = [
        (names[true], names[answer], count)
        for true, counts in enumerate(evaluation["confusion"])
        for answer, count in enumerate(counts)
        if count and true != answer
    ]
    return sorted(found, key=lambda mistake: -mistake[2])[:most]


def _pct(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.2f}".replace("-", MINUS)


def _number(value: float | None, digits: int = 0) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def _short(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}".replace("-", MINUS)


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _slug(text: str) -> str:
    """A name as part of ids and names of files."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:120] or "study"


def _unused(name: str, taken: set[str]) -> str:
    """The name, or with a number behind it, where names that differ in what no id can hold became the same."""
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    found = next(one for one in numbered if one.lower() not in taken)
    taken.add(found.lower())
    return found
