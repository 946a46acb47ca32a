"""The commands about a folder of images, before a network sees it."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from preresnet.cli.options import shown


@dataclass(frozen=True)
class Check:
    """Find what is wrong with a folder of images: broken files, copies, rare classes.

    Images lie in a folder for each class, right in DIR or in DIR/train, DIR/val and DIR/test. Each file is read once;
    what was found is kept, so that a second look takes seconds. The exit code is 1 where something needs a person.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder."""
    list_out: Path | None = None
    """Write to this new file what training had better leave out: `preresnet train ... --leave-out FILE` reads it."""
    workers: int | None = None
    """Processes that read files; by default one for each core."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Look at all files, and print what was found."""
        from preresnet import display, terminal
        from preresnet.data import checking, leaving_out

        if self.list_out is not None:
            leaving_out.check_new(self.list_out)
        console = terminal.console(stderr=True)
        with terminal.progress("reading", "{task.completed:,.0f} of {task.total:,.0f} files", console) as bar:
            task = bar.add_task("", total=None, start=False)

            def report(done: int, total: int) -> None:
                bar.start_task(task)
                bar.update(task, completed=done, total=total)

            found = checking.check(self.folder, report, self.workers)
        if self.list_out is not None:
            leaving_out.write(self.list_out, found.leave_out)
        if self.json:
            print(json.dumps(found.as_dict()))
        else:
            display.findings(found)
            if self.list_out is not None:
                print(f"left out {self.list_out}: {len(found.leave_out):,} files")
            elif found.leave_out:
                print(f"next     {shown('data', 'check', self.folder, '--list-out', 'leave-out.txt')}")
        sys.stdout.flush()
        return 1 if found.needs_a_person else 0
