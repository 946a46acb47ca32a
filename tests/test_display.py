"""What is printed: names as they are, and nothing that breaks off where a letter cannot be shown."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_folders import answers, make_run, make_study
from test_pictures import NAMES

from preresnet import display, terminal
from preresnet.cli import main
from preresnet.study import manifest
from preresnet.study.manifest import Manifest, Printed, RowEntry, RunEntry, Statistics


def test_tables_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = (*NAMES, ":cat:", "[/]", "[bold]")
    row = {"images_per_s": 1.0, "peak_bytes": 1, "first_step_s": 1.0, "system": "preresnet", "settings": "float32"}
    measured = {"network": "[v2]", "task": "training", "batch": 1, "device": "[cpu]"}
    display.bench(measured | {"rows": [row | {"mode": name} for name in names], "ratios": {}})
    told = capsys.readouterr().out
    display.answers([{"image": name, "top": [{"class": name, "probability": 1.0}]} for name in names])
    answered = capsys.readouterr().out
    display.evaluation(answers(40.0, names))
    evaluated = capsys.readouterr().out
    rows = tuple(RowEntry(name, name, name, name, "digits", None, (RunEntry(0, "", message=name),)) for name in names)
    display.study(Manifest("sweep", "[title]", "", rows))
    studied = capsys.readouterr().out
    for name in names:
        assert answered.count(f" {name} ") == 2
        assert name in told
        assert name in evaluated
        assert studied.count(name) >= 3
    assert "[v2], training, batch 1, [cpu]" in told
    assert "[title]" in studied


def test_a_long_name_is_cut_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a-long-name/" * 40
    display.answers([{"image": name, "top": [{"class": "x", "probability": 1.0}]}])
    assert "\N{HORIZONTAL ELLIPSIS}" not in capsys.readouterr().out


def test_lines_and_progress_show_names_as_they_are() -> None:
    for console in (terminal.lines(), terminal.console()):
        console.file = io.StringIO()
        console.print("runs/[v2] :cat: [red]x[/red]")
        assert console.file.getvalue() == "runs/[v2] :cat: [red]x[/red]\n"
    screen = terminal.console(force_terminal=True, width=200, file=io.StringIO())
    with terminal.progress("{task.description}", "", screen) as bars:
        bars.add_task("[red]x[/red] :cat: [v2]", total=1)
    assert isinstance(screen.file, io.StringIO)
    assert "[red]x[/red] :cat: [v2]" in screen.file.getvalue()


def test_a_run_in_a_folder_with_brackets_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[v2]" / "a$b$c"
    given = ["--network", "resnet8-preact", "--schedule.steps", "2"]
    given += ["--global-batch", "8", "--data.image-size", "8", "--precision", "float32"]
    assert main(["train", "digits/resnet20-preact", *given, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"run      {out}\n" in said
    assert f"report   preresnet report '{out}'\n" in said  # as a shell takes it
    assert main(["report", str(out)]) == 0
    assert f"report   {out / 'report.html'}\n" in capsys.readouterr().out


def test_tables_are_whole_where_the_output_is_ascii(tmp_path: Path) -> None:
    study = make_study(tmp_path / "caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    one = RowEntry("a", "\N{SNOWMAN}", "", "", "", Printed(1.0), (), Statistics(2, (1.0, 2.0), 1.5, 1.5, 0.7))
    manifest.write(study, Manifest("table1", "caf\udce9", "", (one,)))
    program = f"""
import sys
from pathlib import Path
from preresnet import display, terminal
from preresnet.cli import main
from preresnet.study import manifest
code = main(["report", {str(study)!r}])
display.study(manifest.read(Path({str(study)!r})))
sys.exit(code)
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode("ascii")
    assert r"caf\xe9" in said
    assert r"caf\udce9" in said
    assert r"1.50 \xb1 0.70" in said
    assert r"| \u2603 " in said


def test_classes_that_are_no_utf8_are_reported(tmp_path: Path) -> None:
    names = ("caf\udce9", "bell\x07", "<b>&\"'", "a$b$", "[red]", *map(str, range(5)))
    run = make_run(tmp_path / "run", classes=names)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in (r"caf\udce9", "&lt;b&gt;&amp;&#34;&#39;", "a$b$", "[red]"):
        assert f'<th scope="row">{words}</th>' in page
    assert "<b>" not in page
