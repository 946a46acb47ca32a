"""One run of a study: done once, whoever else tries to do it too."""

import json
import os
import platform
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import preresnet.device as devices
from preresnet import distributed
from preresnet.data import sets
from preresnet.fields import read_json
from preresnet.propagation import series
from preresnet.recipe import Recipe
from preresnet.spec import NetSpec, UserError, from_json, to_json
from preresnet.study.manifest import DIVERGED_FILE, STUDY_FILE
from preresnet.train import folder, runlog, trainer
from preresnet.train.checkpoint import write_atomically

LOCK_WAIT_S = 300.0  # a worker whose node was lost notices that within this time, or its lock dies with it


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Args:
        row: name of its row.
        request: what to do, with ``resume``; paths are absolute.
        study: folder of the study.
        threads: that may compute on a CPU; None leaves it to PyTorch.
        crop: size of the test crop whose error is asked for; None: the recipe's first.
        probe_every: steps between two probes of the network, or ``auto``; None: none.
    """

    row: str
    request: folder.Request
    study: Path
    threads: int | None = None
    crop: int | None = None
    probe_every: series.Every = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.row} seed {self.request.seed}"

    @property
    def log(self) -> Path:
        """Who worked at this run, and what it printed."""
        return self.study / ".logs" / f"{self.request.out.parent.name}-seed{self.request.seed}.log"


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Args:
        status: ``done``; ``diverged``: the loss was not finite, which is a result too; ``failed``: anything else;
            ``stopped``: by a signal, after a checkpoint.
        error_pct: at the last step, of a run that is done.
        top5_error_pct: the same for the five likeliest answers.
        message: what went wrong.
    """

    status: Literal["done", "diverged", "failed", "stopped"]
    error_pct: float | None = None
    message: str = ""
    top5_error_pct: float | None = None


def kept(request: folder.Request, crop: int | None = None) -> Outcome | None:
    """The outcome of a run that was finished before; None where it was not, or where something else lies there.

    Args:
        request: what the run was to do.
        crop: size of the test crop whose error is asked for; None: the recipe's first.
    """
    for file in (folder.RESULT_FILE, DIVERGED_FILE):
        path = request.out / file
        if not path.is_file():
            continue
        found = read_json(path, "the result")
        num_classes, in_channels = sets.shape(request.recipe.data, request.data_root)
        wanted = folder.resolve_network(request.recipe, num_classes, in_channels)
        try:
            # read, not compared as text: an earlier version wrote fewer fields
            same = from_json(Recipe, json.dumps(found["recipe"])) == request.recipe
            same &= from_json(NetSpec, json.dumps(found["network"])) == wanted
            if same and found["seed"] == request.seed:
                if file == DIVERGED_FILE:
                    return Outcome("diverged", message=found["message"])
                return Outcome("done", **errors(found, crop))
        except (KeyError, TypeError, UserError) as error:
            raise UserError(
                f"{path} is no whole result ({error}); restore it, or delete it to do the end again"
            ) from None
    return None


def errors(result: dict[str, Any], crop: int | None = None) -> dict[str, Any]:
    """``error_pct`` and ``top5_error_pct`` in the content of ``result.json``, on a test crop."""
    found = result if crop is None else result["other_crops"][str(crop)]
    return {name: found.get(name) for name in ("error_pct", "top5_error_pct")}


def work(job: Job) -> Outcome:
    """Do a run, or continue it, or find it done; never together with another worker.

    Whoever gets hold of its folder looks first whether the run is finished, so that a run given out twice is done once.
    """
    if not (job.study / STUDY_FILE).is_file():
        return Outcome(
            "failed",
            message=f"{job.study} is not visible on {platform.node()}; give an --out that all machines share",
        )
    try:
        with ExitStack() as held:
            distributed.on_first(lambda: held.enter_context(folder.hold(job.request.out, LOCK_WAIT_S)))
            found = distributed.shared(lambda: kept(job.request, job.crop))
            if found is None:
                _note(job, f"start at step {step(job)}")
                found = _train(job)
                _note(job, found.status + (f": {found.message}" if found.message else ""))
            return found
    except (UserError, trainer.NotWrittenError) as error:
        return Outcome("failed", message=str(error))


def work_together(job: Job) -> Outcome:
    """`work` in one of the processes of a run, which the environment describes."""
    with distributed.joined(job.request.device):
        return work(job)


def step(job: Job) -> int:
    """The last step that a run has logged."""
    lines = runlog.read(job.request.out)
    return lines[-1]["step"] if lines else 0


def _train(job: Job) -> Outcome:
    try:
        result = series.train(job.request, job.probe_every)
        return Outcome("done", **errors(result, job.crop))
    except trainer.InterruptedRunError as error:
        return Outcome("stopped", message=str(error).split(". ")[0])
    except trainer.NotFiniteError as error:
        message = str(error).split("; ")[0]
        distributed.on_first(lambda: _write_diverged(job.request, message))
        return Outcome("diverged", message=message)
    except Exception as error:  # whatever it is, the other runs go on
        with suppress(OSError):
            traceback.print_exc()
        words = str(error).strip().splitlines() or [type(error).__name__]
        known = isinstance(error, ValueError | OSError | trainer.NotWrittenError)
        return Outcome("failed", message=words[0] if known else f"{type(error).__name__}: {words[0]}")


def _write_diverged(request: folder.Request, message: str) -> None:
    """What ``result.json`` would say, for a run that has no error to report: the paper's "fail"."""
    device = devices.choose(request.device)
    content: dict[str, Any] = {
        "error_pct": None,
        "message": message,
        "seed": request.seed,
        **folder.provenance(request, device, devices.resolve(request.recipe.precision, device)),
        "recipe": json.loads(to_json(request.recipe)),
        "network": json.loads((request.out / folder.NETWORK_FILE).read_text()),
    }
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(request.out / DIVERGED_FILE, lambda path: path.write_text(text))


def _note(job: Job, words: str) -> None:
    if not distributed.world().first:
        return
    with suppress(OSError):  # a full disk decides nothing here: what became of the run is said all the same
        job.log.parent.mkdir(exist_ok=True)
        with open(job.log, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()} process {os.getpid()}: {words}\n")
