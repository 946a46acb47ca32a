"""One run: everything that its loop needs, made once from a request, and what is done with it between two steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import preresnet.device as devices
from preresnet import distributed, trained
from preresnet.data import augment, balance, leaving_out, sets
from preresnet.data.files import ImageFiles
from preresnet.data.image_set import Images
from preresnet.data.loaders import Batches, fit, fixed_batch, plain_batches, training_batches
from preresnet.fields import read_json
from preresnet.kernels import native
from preresnet.model import memory, weights
from preresnet.model.network import Network, build
from preresnet.recipe import Photographs, Precision, Recipe
from preresnet.spec import MemoryPlan, NetSpec, UserError, to_json
from preresnet.train import checkpoint, folder, parallel, parts, source
from preresnet.train.averaging import Average
from preresnet.train.capture import Mechanism, TrainingStep, choose_passes, chosen
from preresnet.train.errors import STOPPED, NotFiniteError
from preresnet.train.optim import build_optimizer
from preresnet.train.progress import Meter, Progress, SinceLine
from preresnet.train.runlog import RunLog, Silence
from preresnet.train.source import Source

STATISTICS_IMAGES = 1_024  # that the norms of averaged weights see before they answer


@dataclass
class Run:
    """A run between two steps. `prepare` makes it, `open` takes its folder, and only then it may change anything.

    Args:
        request: what was asked for.
        spec: of the network.
        data: images to train and to evaluate on, where they are read.
        normalisation: fitted to the training images, on the device.
        device: that trains.
        precision: resolved, not ``auto``.
        mechanisms: of its steps on a GPU.
        plan: what the backward pass recomputes.
        predicted_bytes: that a step takes at that plan.
        model: on the device; its weights are those that the run starts from.
        optimizer: over its parameters.
        source: trained network that it starts from.
        said: what a user should know of how it was made.
        world: which process of the run this is; the first writes its folder.
        division: of a batch among them.

    Attributes:
        progress: how far it is.
        meter: adds up what its steps measure.
        saved_step: of the checkpoint in its folder; None: there is none.
        average: of its weights, where the recipe asks for one.
        log: of its folder, once it is open.
    """

    request: folder.Request
    spec: NetSpec
    data: sets.ImageSet
    normalisation: augment.Normalisation
    device: torch.device
    precision: Precision
    mechanisms: tuple[Mechanism, ...]
    plan: MemoryPlan
    predicted_bytes: int
    model: Network
    optimizer: torch.optim.Optimizer
    source: Source | None = None
    said: tuple[str, ...] = ()
    world: distributed.World = distributed.World()  # noqa: RUF009 - frozen
    division: parallel.Division = parallel.Division()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        self.train_images: Images | ImageFiles = self.data.train.to(self.device)
        self.evaluation_images: Images | ImageFiles = self.data.evaluation.to(self.device)
        self.progress = Progress()
        self.meter = Meter(self.progress)
        self.saved_step: int | None = None
        reach = self.recipe.average * self.recipe.schedule.steps
        decay = max(0.0, 1 - 1 / reach) if reach else 0.0
        self.average = Average(self.model, decay, self.recipe.freeze) if reach else None
        self._measured_step = -1
        self.log: RunLog | Silence

    @property
    def recipe(self) -> Recipe:
        """What is done."""
        return self.request.recipe

    @property
    def last_step(self) -> int:
        """The step that ends the run."""
        return self.recipe.schedule.steps

    def due(self, every: int) -> bool:
        """Whether something that is done every so many steps, and at the end, is to be done now."""
        step = self.progress.step
        return step % every == 0 or step == self.last_step

    def owes_evaluation(self) -> bool:
        """Whether an evaluation is due that was not done: it comes after the checkpoint, and may have failed there."""
        done = self.progress.evaluations[-1]["step"] if self.progress.evaluations else 0
        return self.progress.step > done and self.due(self.recipe.eval_every)

    def batches(self) -> Batches:
        """What training sees, as a function of the step."""
        return training_batches(
            self.train_images,
            self.recipe.data,
            self.normalisation,
            self.recipe.global_batch,
            self.request.seed,
            self.recipe.small_steps,
            self.request.workers,
            self.data.classes,
            self.world.rank,
            self.world.size,
        )

    def training_step(self) -> TrainingStep:
        """What does an update with this process's part of a batch, together with the others."""
        return TrainingStep(
            self.model,
            self.optimizer,
            self.division.part,
            self.precision,
            self.mechanisms,
            self.request.seed,
            self.division.ranks,
            parallel.wrapped(self.model),
        )

    def begin(self) -> None:
        """Put the network into training mode, but for the norms that stay as they are."""
        self.model.train()
        parts.keep_frozen(self.model, self.recipe.freeze)

    def answering(self) -> Network:
        """What is evaluated and kept: the network, or the average of its weights with norm statistics of its own."""
        if self.average is None:
            return self.model
        if self._measured_step != self.progress.step:
            data, workers = self.recipe.data, self.request.workers
            batches = plain_batches(self.train_images, data, self.normalisation, STATISTICS_IMAGES, workers)
            self.average.measure(batches, self.precision)
            self._measured_step = self.progress.step
        return self.average.model

    def fixed_batch(self, count: int) -> tuple[Tensor, Tensor]:
        """So many training images without augmentation, always the same."""
        return fixed_batch(self.train_images, self.recipe.data, self.normalisation, count)

    def open(self) -> None:
        """Write down what the run is, or take up what its checkpoint holds, and begin its log.

        Raises:
            UserError: the checkpoint is damaged.
            NotWrittenError: the disk is full, say.
        """
        out = self.request.out
        kept = {"weights": self.source.as_dict()} if self.source else {}
        distributed.on_first(
            lambda: folder.claim(self.request, self.spec, self.device, self.precision, self._validation(), kept)
        )
        if distributed.shared((out / checkpoint.CHECKPOINT_FILE).is_file):
            average = self.average and self.average.model
            self.progress = checkpoint.restore(out, self.model, self.optimizer, Progress.from_dict, average)
            self.meter = Meter(self.progress)
            self.saved_step = self.progress.step
        self.log = Silence()
        if self.world.first:
            self.log = RunLog(out, self.last_step, self.progress.step, self.progress.num_lines)
        self.log.say(self.data.words())
        if self.world.size > 1:
            self.log.say(
                f"{self.world.size} processes, each with {self.recipe.global_batch // self.world.size} images a step"
            )
        if self.saved_step is not None and self.progress.world_size != self.world.size:
            self.log.say(
                f"the checkpoint was written by {self.progress.world_size} processes: sums are formed in another order "
                "from here on, so that results differ by rounding"
            )
        self.progress.world_size = self.world.size
        if isinstance(self.recipe.data, Photographs):
            self.log.say(balance.choose(self.recipe.data, self.data.train.labels, self.data.classes).words)
        for line in (*self.said, *([self.data.note] if self.data.note else [])):
            self.log.say(line)
        free = devices.free_bytes(self.device) / 2**30
        self.log.say(f"memory plan {self.plan}: {self.predicted_bytes / 2**30:.2f} GiB predicted, {free:.1f} GiB free")

    def _validation(self) -> dict[str, str]:
        """The images that a rule has kept out of training, with their classes."""
        kept, root = self.data.evaluation, self.request.data_root
        if not isinstance(self.recipe.data, Photographs) or self.data.split != "holdout":
            return {}
        assert isinstance(kept, ImageFiles)
        assert root is not None
        names = (self.data.classes[label] for label in kept.labels.tolist())
        return dict(zip(kept.listed(root), names, strict=True))

    def write_line(self, lr: float) -> None:
        """A line of the log: means over the steps since the line before.

        Args:
            lr: of the step just done.
        """
        self.meter.collect()
        progress, step = self.progress, self.progress.step
        line = progress.since_line.means(self.recipe.global_batch)
        progress.since_line = SinceLine()
        self.log.write(step, **line, lr=lr)
        words = (
            f"loss {line['loss']:.4f}  train error {line['train_error_pct']:.2f} %  "
            f"{line['images_per_s']:.0f} images/s  data wait {line['data_wait_pct']:.1f} %"
        )
        if progress.evaluations:
            words += f"  {progress.evaluations[-1]['split']} error {progress.evaluations[-1]['error_pct']:.2f} %"
        self.log.show(step, words)

    def save(self) -> None:
        """Checkpoint and weights, as they are at this step.

        Raises:
            NotFiniteError: a loss or a weight is not finite; what was saved before stands.
            NotWrittenError: the disk is full, say; the same.
        """
        self.meter.collect()
        parallel.mean_statistics(self.model)
        self.progress.skipped = distributed.union(self.progress.skipped)
        out, step = self.request.out, self.progress.step
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.parameters()):
            raise NotFiniteError(f"a weight was infinite or not a number at step {step}; {STOPPED}")
        self.progress.num_lines = self.log.num_lines
        average = self.average and self.average.model
        answering = self.answering()
        kept = trained.metadata(self.recipe.data, self.data.classes, self.normalisation) | {"step": str(step)}

        def write() -> None:
            checkpoint.save(out, self.model, self.optimizer, self.progress.as_dict(), average)
            self.saved_step = step
            checkpoint.write_atomically(
                out / weights.WEIGHTS_FILE, lambda partial: weights.save(partial, answering, kept)
            )

        distributed.on_first(write)
        self.saved_step = step

    def what_stands(self) -> str:
        """Where a run that failed can be taken up again."""
        if self.saved_step is None:
            return f"There is no checkpoint in {self.request.out} yet"
        return f"The checkpoint of step {self.saved_step} in {self.request.out} stands; --resume goes on from it"


def prepare(request: folder.Request, data: sets.ImageSet | None = None) -> Run:
    """Everything that a run needs, on its device; nothing is written.

    In several processes each makes its own, and none goes on where one cannot or where they differ.

    Args:
        request: what to train, and where.
        data: images that have been read and divided already; None: as the recipe says.

    Raises:
        UserError: bad input.
    """
    run = distributed.all_or_none(lambda: _prepare(request, data))
    distributed.agree(
        lambda: {
            "recipe": to_json(request.recipe),
            "network": to_json(run.spec),
            "seed": request.seed,
            "precision": run.precision,
            "memory plan": run.plan,
            "versions": folder.versions(),
            "training images": run.data.train.fingerprint(),
            "evaluated images": run.data.evaluation.fingerprint(),
            "weights to start from": run.source.as_dict()["sha256"] if run.source else None,
        }
    )
    return run


def _prepare(request: folder.Request, data: sets.ImageSet | None) -> Run:
    recipe, world = request.recipe, distributed.world()
    device = devices.choose(request.device)
    if device == torch.device("cuda") and world.size > 1:
        device = torch.device("cuda", world.local_rank)
    division = parallel.divide(recipe, world.size)
    mechanisms = chosen(request.gpu, device)
    precision = devices.resolve(recipe.precision, device)
    num_classes, in_channels = sets.shape(recipe.data, request.data_root) if data is None else data.shape
    known = trained.stored_classes(request.out) if request.resume else None
    spec = folder.resolve_network(recipe, len(known or ()) or num_classes, in_channels)
    origin, said = _source(request), list[str]()
    if origin is not None:
        spec, said = source.fitted(spec, origin)
    folder.check(request, spec)
    if data is None:
        written = request.out / folder.VALIDATION_FILE
        kept = written if request.resume and written.is_file() else None
        data = sets.load(recipe.data, request.data_root, request.leave_out, kept)
    if request.leave_out is not None and not data.num_listed and leaving_out.read(request.leave_out):
        raise UserError(
            f"no file that {request.leave_out} names is among the images of this run; its paths start from "
            "--data-root, as `preresnet data check` writes them"
        )
    if known is not None:
        data = trained.with_classes(data, known, request.data_root, whole=True)
    plan, predicted_bytes = _plan(request, spec, device, precision, mechanisms, world.size)
    torch.manual_seed(request.seed)
    model = build(spec, request.seed)
    if origin is not None:
        said += source.take(model, data.classes, origin)
    parts.freeze_parameters(model, recipe.freeze)
    memory.set_plan(model, plan)
    choose_passes(model, mechanisms, device)
    model = devices.place(model, device)
    normalisation = (
        fit(data.train, recipe.data) if origin is None else source.normalisation(origin.network, recipe.data)
    )
    return Run(
        request,
        spec,
        data,
        normalisation.to(device),
        device,
        precision,
        mechanisms,
        plan,
        predicted_bytes,
        model,
        build_optimizer(model, recipe.optim, recipe.stage_rate, precision),
        origin,
        tuple(said),
        world,
        division,
    )


def _source(request: folder.Request) -> Source | None:
    """The trained network that a run starts from: the one that is given, or that its folder names."""
    file = request.out / folder.RUN_FILE
    kept = source.of_run(read_json(file, "the run's file")) if request.resume and file.is_file() else None
    if request.weights is None and kept is None:
        return None
    if kept is None and request.resume and (request.out / folder.RECIPE_FILE).is_file():
        raise UserError(f"{request.out} was started without --weights; leave it out, or give another --out")
    path, expected = kept or (request.weights, "")
    if request.weights is None and (request.out / checkpoint.CHECKPOINT_FILE).is_file():
        assert path is not None
        return Source(path, expected, trained.open_weights(request.out))  # the checkpoint has its tensors, changed
    found = request.weights or path
    assert found is not None
    return source.open_source(found, expected)


def _plan(
    request: folder.Request,
    spec: NetSpec,
    device: torch.device,
    precision: Precision,
    mechanisms: Sequence[Mechanism],
    world_size: int,
) -> tuple[MemoryPlan, int]:
    """The memory plan of a run, and the bytes that a step is predicted to take in each of its processes."""
    recipe = request.recipe
    size, batch = (
        recipe.data.image_size,
        min(recipe.norm_batch or recipe.global_batch, recipe.global_batch // world_size),
    )
    fused = native.available() if device.type == "cpu" else "compiled" in mechanisms
    here = distributed.processes_beside(device)
    if request.memory == "auto":
        plan, found = memory.choose(spec, size, batch, precision, devices.free_bytes(device) // here, fused=fused)
    else:
        plan = request.memory
        found = memory.predict(spec, size, batch, precision, plan, fused=fused)
    return plan, found["peak_bytes"]
