"""Pictures show names as they are, and leave the program that asks for them as it was."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_folders import answers, probed_line

from preresnet.pictures import canvas, curves, depth, heatmaps, speed
from preresnet.pictures.answers import draw_calibration, draw_classes, draw_confusion

NAMES = ("runs/[v2]", "[red]x[/red]", "a$b$c", r"$\frac", r"\$5 and $6", '<b>&"', "_hidden", "50 % $", "x^2_i")
WAVE = tuple((step, 1.0 + step) for step in range(1, 9))


def probed(name: str) -> dict[str, Any]:
    """A probe of three units, as `Probe.as_dict` gives it."""
    part = [1.0, 2.0, 3.0]
    return {
        "units": [f"{name}.{unit}" for unit in range(3)],
        "forward": dict.fromkeys(("x_rms", "residual_rms", "sum_negative_share", "changed"), part),
        "joins": {"factor": part, "product": part},
        "backward": dict.fromkeys(("gradient", "straight", "rest", "cosine", "cancelled_share"), part),
    }


def drawn(names: tuple[str, ...]) -> dict[str, Any]:
    """One of every picture that shows a name."""
    curve = [curves.Curve(name, (curves.Seed(WAVE, WAVE),)) for name in names[:2]]
    classes = answers(40.0, names)
    row = {"mode": "best", "images_per_s": 1.0, "peak_bytes": 1}
    measured = {"rows": [row | {"system": name} for name in names], "network": names[0], "task": names[1]}
    return {
        "curves": curves.draw_curves(curve, names[0], "test"),
        "depth": depth.draw_depth({name: probed(name) for name in names}),
        "pairs": depth.draw_pairs({name: [{"first": name, "from_first": [1e-8, 1e-7]}] for name in names}),
        "lines": depth.draw_lines({name: probed(name) for name in names}, ("signal", "factor")),
        "heatmaps": heatmaps.draw_heatmaps({name: [probed_line(0, 0), probed_line(9, 0)] for name in names}),
        "classes": draw_classes(classes)[0],
        "confusion": draw_confusion(classes)[0],
        "calibration": draw_calibration(classes)[0],
        "speed": speed.draw_speed(measured | {"batch": 1, "device": names[2]}),
    }


def letters(figure: Any) -> str:
    """All that is written in a drawing."""
    root = ElementTree.fromstring(canvas.encoded(figure, "svg", {"svg.fonttype": "none"}))
    return "\n".join("".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text"))


def test_names_are_shown_as_they_are() -> None:
    figures = drawn(NAMES)
    shown = {kind: letters(figure) for kind, figure in figures.items()}
    for kind in ("depth", "pairs", "lines", "heatmaps", "classes", "confusion", "speed"):
        assert [name for name in NAMES if name not in shown[kind]] == [], kind
    assert shown["curves"].count(NAMES[0]) == 2  # title and legend
    assert NAMES[1] in shown["curves"]


@pytest.mark.parametrize("name", NAMES)
def test_each_name_can_be_a_title(name: str) -> None:
    assert name in letters(curves.draw_curves([curves.Curve(name, (curves.Seed(WAVE, WAVE),))], name, "test"))


def test_what_no_file_can_hold_is_written_as_python_writes_it() -> None:
    names = ("caf\udce9", "bell\x07", "\uffff", "雪")
    figures = drawn(names)
    for kind in ("classes", "confusion", "speed", "lines"):
        shown = letters(figures[kind])
        for words in (r"caf\udce9", r"bell\x07", r"\uffff", "雪"):
            assert words in shown, kind
    assert canvas.encoded(figures["classes"], "png").startswith(b"\x89PNG")


def test_a_name_that_looks_like_part_of_a_drawing_stays_as_it_is(tmp_path: Path) -> None:
    from preresnet.report.drawings import of_answers

    names = ('a id="b"', "url(#x)", "#0b57d0", 'xlink:href="#y', "d 1.23456", "font-family: x;")
    page = ElementTree.fromstring(of_answers("one", "label", answers(40.0, names))["confusion"].inline())
    shown = "\n".join("".join(text.itertext()) for text in page.iter("text"))
    assert [name for name in names if name not in shown] == []


def test_the_callers_backend_and_settings_stay(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import matplotlib
matplotlib.use("svg")
from matplotlib import pyplot
matplotlib.rcParams["font.size"] = 17
before = dict(matplotlib.rcParams)
from pathlib import Path
from test_pictures import drawn, canvas
for number, figure in enumerate(drawn(("a", "b", "c")).values()):
    for kind in ("png", "svg"):
        canvas.save(figure, Path({str(tmp_path)!r}) / f"{{number}}.{{kind}}")
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert dict(matplotlib.rcParams) == before
assert not pyplot.get_fignums()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert len(list(tmp_path.iterdir())) == 18
