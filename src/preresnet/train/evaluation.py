"""What a run measures of its network: errors on the way, and at the end all that its result says."""

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from preresnet import distributed, inference
from preresnet.data.crops import test_crop
from preresnet.data.files import ImageFiles
from preresnet.data.image_set import Images
from preresnet.data.loaders import evaluations
from preresnet.model.network import Network
from preresnet.pictures import explained
from preresnet.recipe import ImagesInFiles, Photographs
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
    images = run.evaluation_images
    if run.world.size > 1:
        images = images.take(torch.tensor(list(distributed.my_share(len(images))), device=_device_of(run)))
    passes = evaluations(images, recipe.data, run.normalisation, run.request.workers)
    first, *others = passes if last else list(passes)[:1]

    def answers(crop: int) -> tuple[Tensor, Tensor]:
        found = inference.logits(model, _until_stopped(passes[crop], run, signals), run.precision)
        return distributed.gathered(found[0]), distributed.gathered(found[1])

    output, labels = answers(first)
    errors = inference.count_errors(output, labels)
    entry: dict[str, Any] = {"step": step, "split": run.data.split, "loss": errors.loss, **_shares(errors)}
    if last:
        entry["other_crops"] = {str(crop): _shares(inference.count_errors(*answers(crop))) for crop in others}
        distributed.on_first(lambda: _report(run, model, output, labels))
    progress.evaluations.append(entry)
    run.log.write(step, split=run.data.split, error_pct=errors.error_pct, evaluation_loss=errors.loss)


def _report(run: Run, model: Network, output: Tensor, labels: Tensor) -> None:
    """Write what the last evaluation found, and small pictures of the images that it speaks of."""
    names, across = run.data.names(run.request.data_root), run.data.across
    report = {"split": run.data.split, **inference.full_report(output, labels, run.data.classes, names)}
    if isinstance(run.recipe.data, Photographs):  # else nobody has looked for them
        report["num_copies_across"] = len({image for image, _ in across})
        report["copies_across"] = [{"image": image, "of": of} for image, of in across[: inference.SHOWN]]
    folder.write_text(run.request.out / folder.EVALUATION_FILE, json.dumps(report) + "\n")
    wanted = [one["image"] for key in ("surest_wrong", "doubted") for one in report[key]]
    small = _thumbnails(run, model, names, list(dict.fromkeys(wanted)))
    folder.write_text(run.request.out / folder.THUMBNAILS_FILE, json.dumps(small) + "\n")


def _thumbnails(run: Run, model: Network, names: Sequence[str], wanted: Sequence[str]) -> dict[str, list[str]]:
    """Of each image a small picture, and one of where its answer comes from: JPEG files as addresses of their bytes."""
    if not wanted:
        return {}
    places = {name: place for place, name in enumerate(names)}
    chosen = run.evaluation_images.take(torch.tensor([places[name] for name in wanted], device=_device_of(run)))
    model.eval()  # it has just answered, with its norms folded
    x, pixels = _seen(run, chosen)
    maps = inference.class_maps(model, x)[1].float().cpu().numpy()
    run.begin()
    small = (explained.thumbnails(one, where) for one, where in zip(pixels.cpu().numpy(), maps, strict=True))
    return {
        name: [f"data:image/jpeg;base64,{base64.b64encode(part).decode()}" for part in both]
        for name, both in zip(wanted, small, strict=True)
    }


def _device_of(run: Run) -> torch.device:
    return run.evaluation_images.labels.device


def _seen(run: Run, images: Images | ImageFiles) -> tuple[Tensor, Tensor]:
    """Images as they are tested: (n, c, h, w) for the network, (n, h, w, c) uint8 for people."""
    data = run.recipe.data
    if isinstance(images, Images):
        pixels = images.pixels
    else:
        assert isinstance(data, ImagesInFiles)
        crops = (test_crop(images.file(n), data.test_sides[0], data.test_crops[0]) for n in range(len(images)))
        pixels = torch.stack(list(crops)).to(run.device)
    return run.normalisation(pixels).permute(0, 3, 1, 2), pixels


def _until_stopped(
    batches: Iterable[tuple[Tensor, Tensor]], run: Run, signals: Signals
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        if signals.received and run.world.size == 1:  # several processes stop at a step, together
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
        "world_size": run.world.size,
        "loss": last["loss"],
        f"best_error_pct_chosen_on_{run.data.split}": best["error_pct"],
        "seed": request.seed,
        **({"weights": run.source.as_dict()} if run.source else {}),
        **folder.provenance(request, run.device, run.precision),
        **({"skipped": progress.skipped} if progress.skipped else {}),
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
