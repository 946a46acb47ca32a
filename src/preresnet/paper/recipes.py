"""How the paper trained each network, by name; and recipes of our own, apart."""

import difflib
from dataclasses import replace

from preresnet.paper.networks import IMAGENET_UNITS, network
from preresnet.paper.tables import ROWS
from preresnet.recipe import (
    DATA_SETS,
    SGD,
    Cosine,
    ImagesInMemory,
    Milestones,
    Muon,
    OneCycle,
    PaperPhotographs,
    Photographs,
    Recipe,
    images_of,
)
from preresnet.spec import UserError

# Trained by the 2015 paper with the same recipe; the small members of the family, for comparison.
SMALL = tuple(f"cifar10/resnet{depth}-{order}" for depth in (20, 32, 44, 56) for order in ("original", "preact"))


def _authors_code(name: str) -> Recipe:
    """Table 4's dagger, as ``resnet-1k-layers`` runs it: batch 64, 200 epochs of 782 updates, Nesterov, no warm-up.

    Its command has ``-batchSize 64 -nGPU 2``: each device takes 32 images, and a norm sees those of its device.
    """
    return Recipe(
        network=name,
        data=ImagesInMemory(name="cifar10", normalise="channel_mean_std"),
        optim=SGD(nesterov=True),
        schedule=Milestones(steps=156_400, milestones=(62_560, 94_622), warmup_steps=0),
        global_batch=64,
        norm_batch=32,
    )


# Table 5. The appendix gives batch and learning rate but not the length; 90 epochs is that of fb.resnet.torch, whose
# training gave the table's last row.
IMAGENET_EPOCHS = 90
EPOCH = -(-(DATA_SETS["imagenet"].num_train or 0) // 256)


def _imagenet(name: str) -> Recipe:
    """Table 5: batch 256 as 32 on each of 8 GPUs, so norms of 32; no warm-up; tested at 320, at the end at 224 too."""
    if not network(name).stem.activated:
        raise UserError(f"{name} is a network for CIFAR; ImageNet's have {', '.join(map(str, IMAGENET_UNITS))} layers")
    return Recipe(
        network=name,
        data=PaperPhotographs(name="imagenet"),
        schedule=Milestones(steps=IMAGENET_EPOCHS * EPOCH, milestones=(30 * EPOCH, 60 * EPOCH), warmup_steps=0),
        global_batch=256,
        norm_batch=32,
        eval_every=EPOCH,
    )


def _facebooks(name: str) -> Recipe:
    """Table 5's dagger, as fb.resnet.torch trains: scale and aspect ratio, Nesterov, strides in the 3x3."""
    return replace(
        _imagenet(f"{name}-spatial"),
        data=PaperPhotographs(name="imagenet", augment="aspect"),
        optim=SGD(nesterov=True),
    )


# Not the paper's: apart by name, never compared with a printed number.
OWN: dict[str, Recipe] = {
    "cifar10/resnet20-preact-quick": Recipe(
        network="resnet20-preact",
        data=ImagesInMemory(name="cifar10", pad=2, small_size=24, small_share=0.6),
        optim=Muon(nesterov=True, weight_decay=2e-4, orthogonal_scale=0.15),
        schedule=OneCycle(steps=3_000, lr=0.2, warmup_steps=600),
        eval_every=600,
        save_every=300,
    ),
    "digits/resnet20-preact": Recipe(
        network="resnet20-preact",
        data=ImagesInMemory(name="digits", image_size=16, pad=1, flip=False),
        optim=SGD(nesterov=True, weight_decay=5e-4),
        schedule=OneCycle(steps=800, lr=0.2, warmup_steps=160),
        global_batch=64,
        log_every=20,
        eval_every=100,
        save_every=100,
    ),
}

# Networks that somebody's own photographs are trained on, by the names that `list` shows; any other works too.
FOR_PHOTOGRAPHS = tuple(
    f"images/resnet{depth}-{order}" for depth in (20, 56, 110, *IMAGENET_UNITS) for order in ("original", "preact")
)


def _images(name: str) -> Recipe:
    """Somebody's own photographs; networks with the stem of CIFAR's take small images. What was tuned: docs/log.md."""
    small = not network(name).stem.activated
    sizes = {"image_size": 32, "test_crops": (32,), "test_sides": (32,)} if small else {}
    return Recipe(
        network=name,
        data=Photographs(name="images", **sizes),
        optim=Muon(nesterov=True, weight_decay=5e-4, decay_all=False),
        schedule=Cosine(steps=10_000, lr=0.1, warmup_steps=500),
        global_batch=64,
        log_every=20,
        eval_every=500,
        save_every=500,
        average=0.02,
    )


VARIANTS = {
    "cifar10/resnet1001-preact-batch64": _authors_code("resnet1001-preact"),
    "imagenet/resnet200-preact-aspect": _facebooks("resnet200-preact"),
}


def recipe_names() -> list[str]:
    """Every recipe by name: each row of Tables 1 to 5 once, the smaller networks, then our own."""
    return list(dict.fromkeys([row.recipe for row in ROWS] + list(SMALL) + list(OWN) + list(FOR_PHOTOGRAPHS)))


def recipe(name: str) -> Recipe:
    """The recipe that a name stands for.

    ``cifar10/NETWORK``, ``cifar100/NETWORK`` and ``imagenet/NETWORK`` give the paper's recipe for any network of
    `network`, listed or not; ``images/NETWORK`` gives ours for somebody's own photographs.

    Paper: appendix, "implementation details"; 2015 paper, Section 4.2.

    Args:
        name: for example ``cifar10/resnet110-preact``.

    Raises:
        ValueError: no such recipe (the nearest are suggested).
    """
    known = OWN | VARIANTS
    if name in known:
        return known[name]
    data, _, net = name.partition("/")
    if data in ("cifar10", "cifar100", "imagenet", "images"):
        try:
            network(net)
            own = {"imagenet": _imagenet, "images": _images}
            return own[data](net) if data in own else Recipe(network=net, data=images_of(data))
        except ValueError as error:
            raise UserError(f"no recipe {name!r}{_suggest(name)} ({error})") from None
    raise UserError(f"no recipe {name!r}{_suggest(name)}; `preresnet list recipes` shows all")


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name, recipe_names(), n=3)
    return f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
