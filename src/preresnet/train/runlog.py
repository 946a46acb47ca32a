"""What does a run leave behind as it goes: durable lines, TensorBoard events, and a terminal that shows it?"""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from preresnet.spec import UserError
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
        self.console = Console(stderr=True, markup=False, emoji=False)
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


def read(folder: Path, file: str = METRICS_FILE) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, or of another such file; a last line cut short by a kill is left out.

    Raises:
        UserError: the file is damaged elsewhere.
    """
    path = folder / file
    if not path.is_file():
        return []
    lines = []
    texts = path.read_bytes().removeprefix(b"\xef\xbb\xbf").strip().split(b"\n")  # without a byte-order mark
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                raise ValueError("no measurement of a step")
        except ValueError as error:
            if number == len(texts):
                break
            raise UserError(f"cannot read {path}: line {number} is damaged ({error}); put a whole copy there") from None
        lines.append(line)
    return lines
