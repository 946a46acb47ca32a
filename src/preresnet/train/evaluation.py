"""What a run measures of its network: errors on the way, and at the end all that its result says."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from preresnet import inference
from preresnet.data.loaders import evaluations
from preresnet.signals import Signals
from preresnet.spec import to_json
from preresnet.train import folder
from preresnet.train.errors import InterruptedRunError
from preresnet.train.run import Run


def evaluate(run: Run, signals: Signals) -> None:
    """Measure errors on the first test crop, for the log and for the run's progress.

    At the last step the other crops are measured too, and the report of the first is written.

    Raises:
        InterruptedRunError: a signal came; the checkpoint of this step was saved before.
    """
    recipe, progress, step = run.recipe, run.progress, run.progress.step
    last, model = step == run.last_step, run.answering()
    passes = evaluations(run.evaluation_images, recipe.data, run.normalisation, run.request.workers)
    first, *others = passes if last else list(passes)[:1]

    def answers(crop: int) -> tuple[Tensor, Tensor]:
        return inference.logits(model, _until_stopped(passes[crop], run, signals), run.precision)

    output, labels = answers(first)
    errors = inference.count_errors(output, labels)
    entry: dict[str, Any] = {"step": step, "split": run.data.split, "loss": errors.loss, **_shares(errors)}
    if last:
        entry["other_crops"] = {str(crop): _shares(inference.count_errors(*answers(crop))) for crop in others}
        report = {"split": run.data.split, **inference.full_report(output, labels, run.data.classes)}
        folder.write_text(run.request.out / folder.EVALUATION_FILE, json.dumps(report) + "\n")
    progress.evaluations.append(entry)
    run.log.write(step, split=run.data.split, error_pct=errors.error_pct, evaluation_loss=errors.loss)


def _until_stopped(
    batches: Iterable[tuple[Tensor, Tensor]], run: Run, signals: Signals
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        if signals.received:
            raise InterruptedRunError(signals.received, run.progress.step, run.request.out)
        yield batch


def _shares(errors: inference.Errors) -> dict[str, float]:
    return {"error_pct": errors.error_pct, "top5_error_pct": errors.top5_error_pct}


def result(run: Run) -> dict[str, Any]:
    """The content of ``result.json``: the error at the last step, and everything needed to repeat the run."""
    request, progress = run.request, run.progress
    last, best = progress.evaluations[-1], min(progress.evaluations, key=lambda entry: entry["error_pct"])
    seconds = max(progress.train_seconds, 1e-9)
    return {
        "error_pct": last["error_pct"],  # at the last step
        "top5_error_pct": last["top5_error_pct"],
        **({"other_crops": last["other_crops"]} if last["other_crops"] else {}),  # by size, at the last step too
        "split": run.data.split,
        "num_images": len(run.data.evaluation),
        "steps": progress.step,
        "loss": last["loss"],
        f"best_error_pct_chosen_on_{run.data.split}": best["error_pct"],
        "seed": request.seed,
        **({"weights": run.source.as_dict()} if run.source else {}),
        **folder.provenance(request, run.device, run.precision),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "train_seconds": round(progress.train_seconds, 1),
        "images_per_s": round(progress.step * run.recipe.global_batch / seconds, 1),
        "data_wait_pct": round(100 * progress.wait_seconds / seconds, 2),
        "recipe": json.loads(to_json(run.recipe)),
        "network": json.loads(to_json(run.spec)),
        "evaluations": [[entry["step"], entry["error_pct"]] for entry in progress.evaluations],
        "memory_plan": run.plan,
        "memory_predicted_bytes": run.predicted_bytes,
    }
