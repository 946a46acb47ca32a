"""Training: the loop of a run, from its request to the result in its folder."""

import json
import time
from contextlib import ExitStack, closing
from typing import Any

from preresnet import distributed
from preresnet.data.image_set import ImageSet
from preresnet.pictures import canvas, curves
from preresnet.signals import Signals
from preresnet.train import folder, runlog
from preresnet.train.capture import own_stream
from preresnet.train.checkpoint import write_atomically
from preresnet.train.errors import InterruptedRunError, LostProcessError, NotFiniteError, NotWrittenError
from preresnet.train.evaluation import evaluate, result
from preresnet.train.optim import set_lr
from preresnet.train.run import Run, prepare
from preresnet.train.watch import Watch, Watching

__all__ = ["InterruptedRunError", "NotFiniteError", "NotWrittenError", "train"]


def train(request: folder.Request, watch: Watch | None = None, data: ImageSet | None = None) -> dict[str, Any]:
    """Train, evaluate, and leave in ``request.out`` all that came of it.

    Args:
        request: what to train, and where.
        watch: looks at the network on the way; the result does not depend on it.
        data: image files that have been read and divided already; None: as the recipe says.

    Returns:
        The content of ``result.json``: the error at the last step, and everything needed to repeat it.

    Raises:
        UserError: bad input, or another process trains there; nothing was changed.
        InterruptedRunError: a signal ended the run; it can be resumed.
        NotFiniteError: the loss was not finite; the message says which checkpoint stands.
        NotWrittenError: a file could not be written; the same.
    """
    run = prepare(request, data)
    with ExitStack() as held, Signals() as signals:
        distributed.on_first(lambda: held.enter_context(folder.hold(request.out)))
        # whoever held it until now may have left something
        distributed.on_first(lambda: folder.check(request, run.spec))
        run.open()
        try:
            _loop(run, watch, signals)
            return _finish(run)
        except (NotFiniteError, NotWrittenError) as error:
            raise distributed.said_by_first(type(error)(f"{error}. {run.what_stands()}")) from error.__cause__
        except InterruptedRunError as error:
            raise distributed.said_by_first(error) from None
        except RuntimeError as error:
            if not distributed.is_of_others(error):
                run.log.say(run.what_stands())
                raise
            lost = LostProcessError(f"another process of this run has ended. {run.what_stands()}")
            raise distributed.said_by_first(lost) from error
        except Exception:
            run.log.say(run.what_stands())
            raise
        finally:
            run.log.close()


def _loop(run: Run, watch: Watch | None, signals: Signals) -> None:
    recipe, progress, meter = run.recipe, run.progress, run.meter
    run.begin()
    batches, probes = run.batches(), watch and _probes(run, watch)
    if probes and progress.step == 0:
        probes.look(0)
    with own_stream(run.device, run.mechanisms), closing(run.training_step()) as update:
        flag = distributed.StopFlag()
        while True:
            if run.owes_evaluation():  # its step is saved: if this fails, a resumed run begins here
                evaluate(run, signals)
                run.save()
            if progress.step == run.last_step:
                break
            meter.start()
            begin = time.perf_counter()
            x, y = batches.at(progress.step)
            waited = time.perf_counter() - begin
            progress.skipped += sorted(batches.broken.difference(progress.skipped))
            lr = recipe.schedule.at(progress.step)
            set_lr(run.optimizer, lr)
            meter.add(*update(x, y, progress.step), waited)
            progress.step += 1
            if run.average is not None:
                run.average.update(run.model, progress.step)
            if probes:
                meter.leave_out(probes.look(progress.step))
            stop = flag.agreed(signals.received)
            if run.due(recipe.log_every):
                run.write_line(lr)
            if run.due(recipe.save_every) or run.owes_evaluation() or stop:
                run.save()
            if stop:
                raise InterruptedRunError(stop, progress.step, run.request.out)
    if progress.skipped:
        run.log.say(f"{len(progress.skipped)} broken images were skipped: {'; '.join(progress.skipped)}")
    if probes:
        share = 100 * probes.seconds / (probes.seconds + progress.train_seconds)
        run.log.say(f"probes: {probes.count}, {probes.seconds:.1f} s, {share:.1f} % of the time of this run")


def _probes(run: Run, watch: Watch) -> Watching:
    return Watching(
        watch,
        run.request.out,
        run.model,
        run.fixed_batch,
        start=run.progress.step,
        last=run.last_step,
        trained=run.progress.train_seconds,
        say=run.log.say,
    )


def _finish(run: Run) -> dict[str, Any]:
    """Result and picture of a run that has come to its last step."""
    found = result(run)
    distributed.on_first(lambda: _write(run, found))
    return found


def _write(run: Run, found: dict[str, Any]) -> None:
    request = run.request
    folder.write_text(request.out / folder.RESULT_FILE, json.dumps(found, indent=1) + "\n")
    name = request.name or run.recipe.network
    curve = curves.Curve(name, (curves.measured(runlog.read(request.out)),))
    picture = curves.draw_curves([curve], f"{name}, seed {request.seed}", run.data.split)
    image = canvas.encoded(picture, "png", dpi=200)
    write_atomically(request.out / folder.CURVE_FILE, lambda partial: partial.write_bytes(image))
