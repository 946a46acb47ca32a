import json
import math
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from report_folders import answers as answered
from report_folders import make_run, make_study, probed_line

from preresnet.cli import main
from preresnet.pictures import answers, heatmaps
from preresnet.report import drawings, gather, page
from preresnet.study import manifest

VOID = {"meta", "br", "img", "link", "input", "hr"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Page(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.ids: list[str] = []
        self.references: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.attributes.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        self.references += found.get("aria-labelledby", "").split()
        self.references += [found["href"][1:]] if found.get("href", "").startswith("#") else []
        self.references += re.findall(r"url\(#([^)]*)\)", " ".join(found.values()))
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag == "table":
            self.tables.append([])
        if tag == "caption":
            self.captions.append("")
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> out of order at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.headings and re.fullmatch(r"h[1-6]", self._open[-1] if self._open else ""):
            level, text = self.headings[-1]
            self.headings[-1] = level, text + data
        if "caption" in self._open:
            self.captions[-1] += data
        elif "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data.translate({0x2013: "-", 0x2212: "-"})  # dash, minus sign

    def table(self, caption: str) -> list[list[str]]:
        """The cells of the table with such a caption."""
        return self.tables[next(number for number, text in enumerate(self.captions) if caption in text)]


def results(path: Path) -> dict[str, list[str]]:
    """Cells of the results table by the first words of the row."""
    rows = Page(path).table("Error at the last step")
    return {row[0]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scaled study, and three single runs: two seeds of one recipe, and a hundred classes without an evaluation."""
    folder = tmp_path_factory.mktemp("report")
    make_study(folder / "study", {"steps": 800, "batch": 64})
    runs = [make_run(folder / f"seed{seed}", seed, error_pct=5.0 + seed, probed=True) for seed in (0, 1)]
    hundred = tuple(f"class {number}" for number in range(100))
    other = make_run(folder / "hundred", 0, "cifar100/resnet110-preact", 30.0, classes=hundred)
    old = make_run(folder / "old", 0, "cifar10/resnet20-preact", 8.0, evaluated=False, probed=True)
    (folder / "out").mkdir()
    page.write([folder / "study", *runs, other, old], folder / "out" / "all.html")
    return folder / "out" / "all.html"


def test_the_page_is_whole_and_refers_only_to_itself(whole: Path) -> None:
    found = Page(whole)
    assert not {"script", "link", "iframe"} & found.tags.keys()
    assert "http:" not in found.source
    assert "https:" not in found.source
    assert "@import" not in found.source
    for tag, attributes in found.attributes:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    assert [name for name, count in Counter(found.ids).items() if count > 1] == []
    assert set(found.references) <= set(found.ids)
    assert any(tag == "html" and attributes.get("lang") == "en" for tag, attributes in found.attributes)
    assert next(attributes["href"] for tag, attributes in found.attributes if tag == "a") == "#main"


def test_a_picture_in_the_page_is_the_whole_drawing(whole: Path) -> None:
    drawings = "".join(re.findall("<svg.*?</svg>", Page(whole).source, re.DOTALL))
    pages = ElementTree.fromstring(f'<all xmlns:xlink="http://www.w3.org/1999/xlink">{drawings}</all>')
    files = {path.stem: ElementTree.fromstring(path.read_text()) for path in whole.parent.glob("*/*.svg")}
    svg = "{http://www.w3.org/2000/svg}"
    for picture in pages:
        drawn = files[picture.attrib["aria-labelledby"].split()[0].removesuffix("-title")]
        for tag, shape in (("path", "d"), ("use", "x"), ("text", "y")):
            here, there = list(picture.iter(tag)), list(drawn.iter(svg + tag))
            assert len(here) == len(there)
            assert [one.text for one in here] == [one.text for one in there]
            for one, other in zip(here, there, strict=True):
                numbers = [re.findall(r"-?[\d.]+", element.get(shape, "")) for element in (one, other)]
                assert len(numbers[0]) == len(numbers[1])  # their values depend on what the layout was measured for


def test_headings_come_in_order_under_one_title(whole: Path) -> None:
    levels = [level for level, _ in Page(whole).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_picture_has_words_and_every_table_a_caption_and_headed_cells(whole: Path) -> None:
    found = Page(whole)
    pictures = [attributes for tag, attributes in found.attributes if tag == "svg"]
    # 3 rows beside the original, 3 single rows alone; signals of 2 of them; pictures of answers for 3 + 2 networks
    assert len(pictures) == 3 + 3 + 2 + 3 * (3 + 2)
    for attributes in pictures:
        assert attributes["role"] == "img"
        title, words = attributes["aria-labelledby"].split()
        for name, tag in ((title, "title"), (words, "desc")):
            content = re.search(rf'<{tag} id="{name}">([^<]+)</{tag}>', found.source)
            assert content
            assert len(content.group(1)) > 10
    assert found.tags["img"] == 0
    assert found.tags["caption"] == found.tags["table"] == len(found.captions)
    assert all(attributes.get("scope") for tag, attributes in found.attributes if tag == "th")
    scrolling = [attributes for _, attributes in found.attributes if attributes.get("class") == "scroll"]
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in scrolling)
    assert len(scrolling) == found.tags["table"]


def test_scaled_errors_stand_apart_from_the_papers_and_are_called_scaled(whole: Path) -> None:
    rows = Page(whole).table("scaled runs here, full-length runs in the paper")
    assert rows[0] == ["", "Here, scaled", "Paper"]
    assert rows[1][-1] == "full length"
    cells = {row[0]: row[1:] for row in rows[2:]}
    # no column of the paper's "fail": its limit is for runs of full length
    assert rows[1][1:-1] == ["median", "mean ± std", "n", "95 % interval", "diverged", "every seed"]
    assert cells["original, Fig. 2(a)resnet110-original, cifar10"] == [
        *("7.00", "7.33 ± 1.53", "3", "6.00 to 9.00", "0 of 3", "7.00, 6.00, 9.00", "6.61"),
    ]
    assert cells["1x1 convolution & <shortcut>resnet110-original-conv1x1, cifar10"] == [
        *("12.00", "12.00", "1", "-", "0 of 1", "12.00", "12.2212.3 ± 0.1"),
    ]
    fails = cells["dropout 0.5, Fig. 2(f)resnet110-original-dropout-0.5, cifar10"]
    assert fails == ["diverged", "-", "2", "-", "1 of 2", "25.00, diverged", "fail (above 20 %)"]
    plain = cells["plain networkresnet110-plain, cifar10"]
    assert plain == ["-", "-", "0", "-", "-", "not finished", "fail (above 20 %)"]


def test_fail_is_counted_at_full_length_alone(tmp_path: Path) -> None:
    page.write([make_study(tmp_path / "study")])
    rows = Page(tmp_path / "study" / "report.html").table("Failed: above 20 %, or diverged")
    assert rows[1][1:-1] == ["median", "mean ± std", "n", "95 % interval", "failed", "diverged", "every seed"]
    cells = {row[0].split(",")[0]: row[1:] for row in rows[2:]}
    assert cells["original"][4:6] == ["0 of 3", "0 of 3"]
    assert cells["dropout 0.5"][4:6] == ["2 of 2", "1 of 2"]
    assert cells["plain networkresnet110-plain"][4:6] == ["-", "-"]


def test_claims_and_differences_are_told_with_their_evidence(whole: Path) -> None:
    found = Page(whole)
    claim = found.table("Which orderings of the paper show here, in scaled runs")[1]
    assert claim[:2] == ["A 1x1 convolution on the shortcut hurts", "not enough runs"]
    assert claim[2:] == ["Median 7.00 % of 3 against 12.00 % of 1.", "Section 3, Table 1"]
    rows = found.table("Difference of the medians")
    assert rows[1] == ["1x1 convolution & <shortcut>", "original, Fig. 2(a)", "-0.50", "-1.00 to +0.25", "-", "1, 3"]
    assert rows[2][2:] == ["-", "-", "0.100", "2, 3"]


def test_failed_and_unfinished_runs_are_listed_as_such(whole: Path) -> None:
    found = Page(whole)
    assert "7 runs in all, 800 steps each: 5 finished, 1 diverged, 1 not finished." in found.source
    states = {(row[0], row[1]): row[2:5] for row in found.table("Every run, finished or not")[1:]}
    diverged = states["dropout 0.5, Fig. 2(f)", "1"]
    assert diverged == ["divergedthe loss was nan at step 401; the run stopped", "-", "400 of 64,000"]
    assert states["plain network", "0"] == ["not finished", "-", "400 of 64,000"]
    assert states["original, Fig. 2(a)", "2"] == ["finished", "9.00", "800"]
    assert "preresnet reproduce table1 --out runs/table1" in found.source


def test_the_run_with_the_median_error_is_shown_closely(whole: Path) -> None:
    found = Page(whole)
    headings = [text for _, text in found.headings]
    assert "original, Fig. 2(a), seed 0" in headings  # of 7, 6 and 9 %
    assert "plain network, seed 0" not in headings
    table = found.table("Errors by class, original, Fig. 2(a), seed 0")
    assert sum(int(row[2]) for row in table[1:]) == 28  # 7 % of 400
    matrix = found.table("Images by true class (rows) and answer (columns), original, Fig. 2(a), seed 0")
    assert [len(row) for row in matrix] == [11] * 11
    recipe = dict(
        row for row in found.table("All that decides the result, beside the seed: cifar10/resnet110-original")
    )
    assert recipe["schedule.milestones"] == "32000, 48000"
    assert recipe["optim.nesterov"] == "no"
    for words in (
        "a CPU of the test, 2 threads",
        "torch 2.11.0",
        "preresnet train cifar10/resnet110-original --seed 2",
    ):
        assert words in found.source


def test_signal_and_gradient_of_probed_runs_are_shown_with_their_numbers(whole: Path) -> None:
    found = Page(whole)
    assert "Signal and gradient along training" in [text for _, text in found.headings]
    told = [text for text in re.findall(r"<desc [^>]*>([^<]*)</desc>", found.source) if "probes" in text]
    assert told[0] == (  # seed 0: of two, the run with the lower error
        "9 units, 6 probes. Signal x, first unit to the end: 1 to 25.6 at step 0, 9 to 231 at step 800. "
        "Gradient at x, first unit to the end: 512 to 1 at step 0, 56.9 to 0.111 at step 800."
    )
    assert len(told) == 2
    numbers = found.table("At the first unit (1) and at the end")
    assert numbers[0][1:3] == ["x, 1", "x, end"]
    assert numbers[-1] == ["800", "9", "231", "0.5", "0.5", "56.9", "0.111", "0.25"]
    for ending in ("png", "svg"):
        names = {path.name for path in (whole.parent / "figures").glob(f"*-signal.{ending}")}
        assert names == {
            f"runs-digits-resnet20-preact-1-signal.{ending}",
            f"runs-cifar10-resnet20-preact-3-signal.{ending}",
        }


def test_a_colour_of_heat_maps_means_the_same_in_all_of_them() -> None:
    runs = [[probed_line(step, seed) for step in (0, 400, 800)] for seed in (0, 5)]
    limits = []
    for one in runs:
        drawn = heatmaps.draw_heatmaps({"a run": one}, runs)
        limits.append([axes.images[0].get_clim() for axes in drawn.axes if axes.images])
    assert limits[0] == limits[1]
    assert limits[0][0] == pytest.approx((0.0, math.log10(14 * 1.5**8)))
    alone = heatmaps.draw_heatmaps({"a run": runs[0]})
    assert alone.axes[0].images[0].get_clim() == pytest.approx((0.0, math.log10(9 * 1.5**8)))


def test_heat_maps_show_each_step_where_it_is() -> None:
    drawn = heatmaps.draw_heatmaps({"a run": [probed_line(step, 0) for step in (0, 100, 800)]})
    image = drawn.axes[0].images[0]
    assert image.get_extent() == [0, 800, 0.5, 9.5]
    shown = image.get_array()
    assert shown is not None
    first = shown[0]
    changes = [column for column in range(1, len(first)) if first[column] != first[column - 1]]
    # halfway between the probes: step 50 of 800, and step 450
    assert [round(800 * column / len(first), -1) for column in changes] == [50, 450]


def test_a_run_without_an_evaluation_says_how_to_get_one(whole: Path) -> None:
    found = Page(whole)
    place = whole.parents[1] / "old"
    command = f"preresnet evaluate {place} --json --precision float32 &gt; {place}/evaluation.json"
    assert found.source.count("evaluation.json") == found.source.count(command) == 1


def test_single_runs_of_one_recipe_are_seeds_of_one_row(whole: Path) -> None:
    tables = Page(whole).tables
    cells = {row[0]: row[1:] for row in next(one for one in tables if one[-1][0] == "resnet20-preact, cifar10")}
    assert cells["resnet20-preact, digits"] == ["5.50", "5.50 ± 0.71", "2", "-", "5.00, 6.00"]
    assert cells["resnet110-preact, cifar100"] == ["30.00", "30.00", "1", "-", "30.00"]


def test_a_paper_row_trained_alone_stands_beside_the_papers_number_and_names_what_was_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0, "cifar10/resnet110-preact", 9.0)
    main(["report", str(run)])
    assert results(run / "report.html")["resnet110-preact, cifar10"][-1] == "6.37"
    for name in ("recipe.json", "result.json"):
        content = json.loads((run / name).read_text())
        content.get("recipe", content)["schedule"]["steps"] = 800
        (run / name).write_text(json.dumps(content))
    assert main(["report", str(run)]) == 0
    found = results(run / "report.html")
    assert found["resnet110-preact, cifar10schedule.steps 800 instead of 64000"][-1] == "6.37"
    assert Page(run / "report.html").table("Error at the last step")[0] == ["", "Here, changed", "Paper"]


def test_each_network_is_drawn_beside_the_original_of_its_depth(tmp_path: Path) -> None:
    names = "resnet110-original", "resnet164-original", "resnet164-preact", "resnet110-preact-1layer", "resnet110-plain"
    names += "resnet20-original", "resnet20-preact-bottleneck", "resnet20-original-bottleneck"
    runs = [make_run(tmp_path / name, 0, f"cifar10/{name}", 9.0) for name in names]
    (study,) = gather.gather(runs)
    beside = {row.entry.network: other.entry.network if (other := study.beside(row)) else None for row in study.rows}
    assert beside == {
        "resnet110-original": None,
        "resnet164-original": None,
        "resnet164-preact": "resnet164-original",
        "resnet110-preact-1layer": None,
        "resnet110-plain": "resnet110-original",
        "resnet20-original": None,
        "resnet20-preact-bottleneck": "resnet20-original-bottleneck",
        "resnet20-original-bottleneck": None,
    }


def test_a_sweep_is_drawn_beside_its_first_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"rate{rate}", 0) for rate in (1, 2)]
    recipe = json.loads((runs[1] / "recipe.json").read_text())
    recipe["schedule"]["lr"] = 0.4
    for name in ("recipe.json", "result.json"):
        content = json.loads((runs[1] / name).read_text())
        (runs[1] / name).write_text(json.dumps(recipe if name == "recipe.json" else content | {"recipe": recipe}))
    (study,) = gather.gather(runs)
    assert [row.entry.label for row in study.rows] == [
        "resnet20-preact, digits, digits/resnet20-preact",
        "resnet20-preact, digits, schedule.lr 0.4 instead of 0.2",
    ]
    assert study.beside(study.rows[0]) is None
    assert study.beside(study.rows[1]) == study.rows[0]


def test_an_unfinished_run_alone_makes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", error_pct=None)
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert str(run / "report.html") in said
    assert "(1 picture," in said
    found = Page(run / "report.html")
    assert found.tags["svg"] == 1
    assert found.table("Every run, finished or not")[1][2:5] == ["not finished", "-", "400 of 800"]


def test_a_run_whose_folder_is_gone_keeps_the_error_that_its_study_wrote_down(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    shutil.rmtree(study / "cifar10-resnet110-original-conv1x1")
    page.write([study])
    cells = results(study / "report.html")
    assert cells["1x1 convolution & <shortcut>resnet110-original-conv1x1, cifar10"][0] == "12.00"
    assert "result.json is missing" in (study / "report.html").read_text()


def test_the_same_folders_give_the_same_bytes(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    run = make_run(tmp_path / "run", probed=True)
    written: list[dict[str, bytes]] = []
    for _ in range(2):
        out, pictures, number = page.write([study, run])
        files = {path.name: path.read_bytes() for path in pictures.iterdir()}
        assert len(files) == 2 * number
        written.append({**files, "page": out.read_bytes()})
    assert written[0] == written[1]
    for name, content in written[0].items():
        if name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
        if name.endswith(".png"):
            with Image.open(study / "figures" / name) as image:
                assert image.width > 700


@pytest.mark.parametrize("name", ["report.html", "figures/table1-cifar10-resnet110-plain-curves.svg"])
def test_what_no_report_wrote_is_left_alone(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study")
    (study / "figures").mkdir()
    (study / name).write_text("<p>years of work</p>")
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}
    assert main(["report", str(study)]) == 2
    assert f"{name} was not written by" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}


def test_bad_folders_are_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs" / "one")
    (tmp_path / "empty").mkdir()
    for name, content in (("cut", '{"study": "table1", '), ("lacking", '{"study": "table1", "title": "T"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(content)
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "broken")
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "other")
    for name, file, content in (
        ("mark", "result.json", '{"seed": 0}'),
        ("latin", "result.json", b'{"name": "caf\xe9"}'),
        ("nested", "result.json", "[" * 100_000),
        ("seedless", "run.json", '{"seed": "one"}'),
        ("class", "evaluation.json", json.dumps(answered(5.0) | {"classes": [{"name": "a"}]})),
        ("lines", "metrics.jsonl", '{"step": 1, "loss": 1.0}\n{"step": 2, "lo\n{"step": 3, "loss": 1.0}\n'),
        ("stepless", "metrics.jsonl", '[1]\n{"step": 3, "loss": 1.0}\n'),
    ):
        shutil.copytree(tmp_path / "runs" / "one", tmp_path / name)
        (tmp_path / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    for file in ("result.json", "recipe.json"):
        (tmp_path / "seedless" / file).write_text('{"network": "resnet20-preact"}' if file == "recipe.json" else "{}")
    (tmp_path / "mark" / "recipe.json").write_text("{}")
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "probed")
    (tmp_path / "probed" / "probe.jsonl").write_text('{"step": 0, "x_rms": [1.0], "gradient": [1.0, 1.0]}\n')
    (tmp_path / "broken" / "result.json").write_text("half a resu")
    (tmp_path / "other" / "evaluation.json").write_text('{"split": "test", "error_pct": 3.0, "classes": []}')
    cases = {
        "absent": "there is no such folder",
        "empty": "neither a study's folder nor a run's",
        "runs": f"name the folders inside it: {tmp_path / 'runs' / 'one'}",
        "cut": "cannot read",
        "lacking": "command: it is missing",
        "other": "evaluation.json does not hold confusion, calibration; `preresnet evaluate",
        "probed": "probe.jsonl has lines without residual_rms, straight, rest; move it away",
        "broken": f"cannot read {tmp_path / 'broken' / 'result.json'}",
        "mark": "no usable recipe.network, recipe.data, recipe.schedule in its result.json",
        "latin": f"cannot read {tmp_path / 'latin' / 'result.json'}",
        "nested": f"cannot read {tmp_path / 'nested' / 'result.json'}",
        "seedless": "no usable recipe.data, recipe.schedule, seed in its",
        "class": "does not hold classes.num_images, classes.num_wrong; `preresnet evaluate",
        "lines": f"cannot read {tmp_path / 'lines' / 'metrics.jsonl'}: line 2 is damaged",
        "stepless": f"cannot read {tmp_path / 'stepless' / 'metrics.jsonl'}: line 1 is damaged",
    }
    for name, words in cases.items():
        assert main(["report", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said
        assert said.count("\n") == 1
    assert not list(tmp_path.rglob("report.html"))
    assert main(["report"]) == 2
    assert "no folder given" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", str(tmp_path / "runs" / "one"), "--out", str(tmp_path / "file" / "page.html")]) == 2
    assert f"{tmp_path / 'file'} cannot be written to" in capsys.readouterr().err


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_keep_the_contrast_of_wcag_aa_light_and_dark(whole: Path) -> None:
    style = re.search(r"<style>(.*?)</style>", whole.read_text(), re.DOTALL)
    assert style
    light, dark = (dict(re.findall(r"(--[\w-]+): (#\w{6});", part)) for part in style.group(1).split("@media", 2)[:2])
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for letters in ("--text", "--quiet", "--link", "--yes", "--no", "--open"):
            for ground in ("--page", "--raised"):
                assert contrast(colours[letters], colours[ground]) >= 4.5, (letters, ground)
        for line in ("--first", "--second"):
            assert contrast(colours[line], colours["--page"]) >= 3
        for level in range(len(answers.HEAT)):
            letters = "--on-heat" if level >= answers.LIGHT_FROM else "--text"
            assert contrast(colours[letters], colours[f"--heat-{level}"]) >= 4.5, level
    for colour, variable in drawings.THEME.items():
        if colour != answers.LIGHT:
            assert light[variable] == colour  # the files show what the light page shows


def browse(folder: Path, address: Path, *options: str, dark: bool = False) -> str:
    assert CHROMIUM
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", scheme]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", *options]
    done = subprocess.run([*command, address.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_overflows_and_dark_is_dark(whole: Path, tmp_path: Path, width: int) -> None:
    # In a frame, because a window has a least width.
    script = """<script>
    for (const one of document.querySelectorAll("details")) one.open = true;
    const wide = [...document.querySelectorAll("main *")].filter(one => !one.closest(".scroll, pre, svg")
      && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName);
    const small = [...document.querySelectorAll("figure > svg")].filter(one => one.clientWidth < 250).length;
    const most = document.documentElement.scrollWidth;
    parent.postMessage([innerWidth, most, small, wide.join()].join("|"), "*");
    </script></body>"""
    (tmp_path / "page.html").write_text(whole.read_text().replace("</body>", script))
    (tmp_path / "frame.html").write_text(
        "<script>onmessage = said => document.body.dataset.seen = said.data</script>"
        f'<iframe src="page.html" style="border: 0; overflow: hidden; width: {width}px; height: 900px"></iframe>'
    )
    seen = browse(tmp_path, tmp_path / "frame.html", "--dump-dom", "--virtual-time-budget=5000")
    assert f'data-seen="{width}|{width}|0|"' in seen
    grounds = []
    for dark in (False, True):
        picture = tmp_path / f"dark-{dark}.png"
        browse(tmp_path, whole, f"--screenshot={picture}", f"--window-size={width},1500", dark=dark)
        with Image.open(picture) as image:
            assert image.size == (width, 1500)
            colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
            assert colours
            assert len(colours) > 50
            grounds.append(max(colours)[1])
    assert grounds == [(255, 255, 255), (20, 21, 23)]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_in_a_browser_it_prints(whole: Path, tmp_path: Path) -> None:
    browse(tmp_path, whole, f"--print-to-pdf={tmp_path / 'page.pdf'}", dark=True)
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type/Page\n") > 3


def test_files_with_a_byte_order_mark_and_a_torn_last_line_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("result.json", "run.json", "recipe.json", "network.json", "evaluation.json", "metrics.jsonl"):
        (run / name).write_text((run / name).read_text(), encoding="utf-8-sig")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 801, "lo')
    (study,) = gather.gather([run])
    assert len(study.rows[0].runs[0].lines) == 48
    assert study.rows[0].runs[0].step == 800


def test_rows_whose_names_differ_in_what_no_id_can_hold_keep_their_pictures_apart(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    found = manifest.read(study)
    names = ("a$b", "a b", "A-B", "\N{SNOWMAN}")
    rows = tuple(replace(row, row=name, label=name) for row, name in zip(found.rows, names, strict=True))
    manifest.write(study, replace(found, rows=rows, differences=(), claims=()))
    out, folder, number = page.write([study])
    assert len(list(folder.iterdir())) == 2 * number
    parsed = Page(out)
    assert [name for name, count in Counter(parsed.ids).items() if count > 1] == []
    assert set(parsed.references) <= set(parsed.ids)
