from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from preresnet.pictures import curves
from preresnet.pictures.canvas import COLOURS
from preresnet.pictures.curves import Curve, Seed


def falling(start: float, steps: int = 10) -> Seed:
    loss = tuple((step, start / step) for step in range(1, steps + 1))
    return Seed(loss, tuple((step, 10 * value) for step, value in loss if step % 5 == 0))


def lines_of(figure: Any, axes: int) -> list[tuple[str, str, float]]:
    """Colour, style and width of every line."""
    return [
        (to_hex(line.get_color()), line.get_linestyle(), line.get_linewidth())
        for line in figure.axes[axes].get_lines()
        if line.get_marker() == "None"
    ]


def test_measurements_are_read_from_the_lines_of_a_run() -> None:
    lines = [
        {"step": 5, "loss": 2.0, "lr": 0.1},
        {"step": 5, "split": "test", "error_pct": 80.0},
        {"step": 6, "loss": 1},
    ]
    assert curves.measured(lines) == Seed(((5, 2.0), (6, 1)), ((5, 80.0),))


def test_the_median_covers_the_steps_that_all_seeds_have() -> None:
    one, two, three = ((1, 1.0), (2, 5.0)), ((1, 3.0), (2, 4.0)), ((1, 9.0), (3, 0.0))
    assert curves.median([one, two]) == ((1, 2.0), (2, 4.5))
    assert curves.median([one, two, three]) == ((1, 3.0),)
    assert curves.median([]) == ()


def test_thinning_keeps_means_and_the_last_step() -> None:
    points = tuple((step, float(step)) for step in range(1, 1001))
    thin = curves.thinned(points, 100)
    assert len(thin) == 100
    assert thin[0] == (10, 5.5)
    assert thin[-1] == (1000, 995.5)
    assert curves.thinned(points[:3]) == points[:3]
    assert curves.thinned(()) == ()


def test_loss_is_dashed_and_left_error_solid_and_right_seeds_thin_and_their_median_thick() -> None:
    pair = [Curve("ours", (falling(2), falling(3), falling(4))), Curve("beside", (falling(9),))]
    figure = curves.draw_curves(pair, "a title", "holdout")
    left, right = lines_of(figure, 0), lines_of(figure, 1)
    assert {style for _, style, _ in left} == {"--"}
    assert {style for _, style, _ in right} == {"-"}
    for lines in (left, right):
        ours = sorted(width for colour, _, width in lines if colour == COLOURS[0])
        assert len(ours) == 4
        assert ours[2] < ours[3]
        assert len([colour for colour, _, _ in lines if colour == COLOURS[1]]) == 1
    assert figure.axes[1].get_ylabel() == "held-out error, %"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["ours", "beside", "training loss (left)", "held-out error (right)"]


def test_an_unfinished_run_does_not_move_the_median() -> None:
    figure = curves.draw_curves([Curve("ours", (falling(2), falling(4)), (falling(90, 4),))], "", "test")
    thick = max(figure.axes[0].get_lines(), key=lambda line: line.get_linewidth())
    assert np.asarray(thick.get_ydata()).tolist() == pytest.approx([3 / step for step in range(1, 11)])


def test_what_measured_nothing_is_drawn_empty() -> None:
    figure = curves.draw_curves([Curve("ours", (), (Seed((), ()),))], "", "test")
    assert not figure.axes[0].get_lines()
