"""What a run leaves behind as it goes: durable lines, TensorBoard events, and words in a terminal."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from preresnet import terminal
from preresnet.spec import UserError
from preresnet.train.checkpoint import not_written, write_atomically

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes each measurement to ``metrics.jsonl``, to TensorBoard and to the terminal.

    The terminal shows a progress bar; where the output is not a terminal, it shows plain lines. A terminal that is gone
    does not end a run.

    Args:
        folder: of the run.
        steps: last step.
        start: step that the run continues from.
        num_lines: of an interrupted run that stand; what the others speak of will be done again. None: those up to
            ``start``.

    Attributes:
        num_lines: written.
    """

    def __init__(self, folder: Path, steps: int, start: int, num_lines: int | None = None) -> None:
        self.path = folder / METRICS_FILE
        found = read(folder)
        kept = [line for line in found if line["step"] <= start] if num_lines is None else found[:num_lines]
        self.num_lines = len(kept)
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda path: path.write_text(text))
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 - closed by `close`
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(folder), purge_step=start + 1)
        self.console = terminal.lines(stderr=True)
        self._bar = terminal.progress("step {task.completed}/{task.total}", "{task.fields[line]}", self.console)
        self._task = self._bar.add_task("", total=steps, completed=start, line="")
        self._bar.start()
        self.steps = steps

    def write(self, step: int, **values: float | str) -> None:
        """Record measurements of a step.

        Raises:
            NotWrittenError: the disk is full, say.
        """
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                if not isinstance(value, str):
                    self._events.add_scalar(name, value, step)
        except OSError as error:
            raise not_written(self.path, error) from error
        self.num_lines += 1

    def show(self, step: int, line: str) -> None:
        """Move the bar to a step; print a line where there is no bar."""
        with suppress(OSError):
            self._bar.update(self._task, completed=step, line=line)
            if not self.console.is_terminal:
                print(f"step {step}/{self.steps}  {line}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        with suppress(OSError):
            self.console.print(line)

    def close(self) -> None:
        """Flush and release everything; what cannot be written by now was refused before."""
        for release in (self._bar.stop, self._events.close, self._file.close):
            with suppress(OSError):
                release()


class Silence:
    """The log of a process that does not write."""

    num_lines = 0

    def write(self, step: int, **values: float | str) -> None:
        """Nothing."""

    def show(self, step: int, line: str) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


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
        except (ValueError, RecursionError) as error:
            if number == len(texts):
                break
            raise UserError(f"cannot read {path}: line {number} is damaged ({error}); put a whole copy there") from None
        lines.append(line)
    return lines
