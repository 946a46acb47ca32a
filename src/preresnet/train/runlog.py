"""What does a run leave behind as it goes: durable lines, TensorBoard events, and a terminal that shows it?"""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from preresnet.train.checkpoint import write_atomically

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes each measurement to ``metrics.jsonl``, to TensorBoard and to the terminal.

    The terminal shows a progress bar; where the output is not a terminal, it shows plain lines.

    Args:
        folder: of the run.
        steps: last step.
        start: step that the run continues from; later lines of an interrupted run are dropped, because the steps they
            speak of will be done again.
    """

    def __init__(self, folder: Path, steps: int, start: int) -> None:
        self.path = folder / METRICS_FILE
        kept = [line for line in read(folder) if line["step"] <= start]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda path: path.write_text(text))
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 - closed by `close`
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(folder), purge_step=start + 1)
        self.console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=start, line="")
        self._bar.start()
        self.steps = steps

    def write(self, step: int, **values: float | str) -> None:
        """Record measurements of a step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if not isinstance(value, str):
                self._events.add_scalar(name, value, step)

    def show(self, step: int, line: str) -> None:
        """Move the bar to a step; print a line where there is no bar."""
        self._bar.update(self._task, completed=step, line=line)
        if not self.console.is_terminal:
            print(f"step {step}/{self.steps}  {line}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Flush and release everything."""
        self._bar.stop()
        self._events.close()
        self._file.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last line cut short by a kill is left out."""
    path = folder / METRICS_FILE
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def draw_curve(folder: Path, title: str) -> Path | None:
    """Draw training loss and error against the step, as Fig. 3 and 6 do: dashed loss (left), solid error (right).

    Returns:
        The picture, or None where nothing was measured.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = read(folder)
    loss = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    error = [(line["step"], line["error_pct"], line["split"]) for line in lines if "error_pct" in line]
    if not loss or not error:
        return None
    figure, left = plt.subplots(figsize=(7, 4.2), layout="constrained")
    left.plot(*zip(*loss, strict=True), "--", color="tab:gray", linewidth=1, label="training loss (left)")
    left.set(xlabel="step", ylabel="training loss", title=title, yscale="log")
    right = left.twinx()
    steps, errors, splits = zip(*error, strict=True)
    right.plot(steps, errors, "o-", markersize=2.5, color="tab:blue", label=f"{splits[-1]} error (right)")
    right.set_ylabel(f"{splits[-1]} error, %")
    right.set_ylim(bottom=0)
    right.annotate(f"{errors[-1]:.2f} %", (steps[-1], errors[-1]), (0, -14), textcoords="offset points", ha="right")
    handles = left.get_lines() + right.get_lines()
    right.legend(handles, [str(handle.get_label()) for handle in handles], loc="upper right", frameon=False)
    left.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    path = folder / "curve.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
