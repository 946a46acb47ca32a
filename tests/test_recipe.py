import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import preresnet
from preresnet.recipe import SGD, ImagesInMemory, Milestones, OneCycle, Recipe


def test_the_papers_schedule() -> None:
    schedule = preresnet.recipe("cifar10/resnet110-preact").schedule
    expected = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert schedule.steps == 64_000
    for step, lr in expected.items():
        assert schedule.at(step) == pytest.approx(lr, rel=1e-12)


def test_the_papers_recipe() -> None:
    recipe = preresnet.recipe("cifar10/resnet164-original")
    assert recipe.global_batch == 128
    assert (recipe.optim.momentum, recipe.optim.weight_decay, recipe.optim.nesterov) == (0.9, 1e-4, False)
    assert recipe.data == ImagesInMemory(
        name="cifar10", image_size=32, pad=4, flip=True, normalise="per_pixel_mean", holdout=0
    )


def test_the_dagger_of_table_4_is_the_authors_code() -> None:
    recipe = preresnet.recipe("cifar10/resnet1001-preact-batch64")
    assert recipe.global_batch == 64
    assert recipe.norm_batch == 32  # 64 over two devices
    assert recipe.schedule == Milestones(steps=200 * 782, milestones=(80 * 782, 121 * 782), warmup_steps=0)
    assert recipe.schedule.at(0) == 0.1
    assert recipe.optim.nesterov


@given(steps=st.integers(1, 5_000), warmup=st.integers(0, 6_000))
def test_one_cycle_rises_to_the_peak_and_ends_near_zero(steps: int, warmup: int) -> None:
    schedule = OneCycle(steps=steps, lr=0.4, warmup_steps=min(warmup, steps - 1))
    rates = [schedule.at(step) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 0.4 for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] <= 0.4 / (steps - schedule.warmup_steps) + 1e-12


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Recipe(network="x", data=ImagesInMemory(name="digits"), global_batch=0), "global_batch=0"),
        (lambda: Recipe(network="x", data=ImagesInMemory(name="digits"), norm_batch=48), "norm_batch=48"),
        (lambda: ImagesInMemory(name="mnist"), "'digits', 'cifar10' or 'cifar100'"),  # type: ignore[arg-type]
        (lambda: ImagesInMemory(name="digits", pad=-1), "pad=-1"),
        (lambda: ImagesInMemory(name="digits", holdout=-5), "holdout=-5"),
        (lambda: SGD(momentum=1.0), "momentum=1.0"),
        (lambda: SGD(momentum=0.0, nesterov=True), "nesterov"),
        (lambda: Milestones(steps=0), "steps=0"),
        (lambda: Milestones(lr=0.0), "lr=0.0"),
        (lambda: Milestones(milestones=(5, 5)), "milestones"),
    ],
)
def test_a_field_out_of_range_is_named(build: object, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        build()  # type: ignore[operator]


def test_recipes_are_frozen() -> None:
    recipe = preresnet.recipe("digits/resnet20-preact")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.global_batch = 3  # type: ignore[misc]
