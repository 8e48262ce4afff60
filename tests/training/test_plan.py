"""The training plan: epochs, updates, moments, warm-up."""

import pytest

from vits_trainer.config.train import TrainConfig
from vits_trainer.data.sampler import BucketBatchSampler
from vits_trainer.training.plan import TrainingPlan


def plan(seconds_per_update: float = 0, fresh_discriminator: bool = False, **settings: object) -> TrainingPlan:
    config = TrainConfig(**settings)
    order = BucketBatchSampler(range(100), [50] * 100, 1, config.batch_size, 2, config.gradient_accumulation_steps)
    made = TrainingPlan.from_config(config, order, 5, fresh_discriminator)
    return made.with_speed(seconds_per_update) if seconds_per_update else made


def test_epochs_become_updates() -> None:
    # 100 clips, 64 in an update: one whole, one of what is left.
    found = plan(epochs=3)
    assert (found.updates_per_epoch, found.total_updates, found.clips_per_update) == (2, 6, 64)


def test_max_updates_decides_over_epochs() -> None:
    assert plan(epochs=3, max_updates=100).total_updates == 100


def test_plan_says_what_falls_to_each_process() -> None:
    # 64 clips an update on 2 processes, in 8 micro-batches of 4; 100 clips an epoch.
    assert str(plan(epochs=3)).endswith(
        "; per process: 32 clips/update in at most 8 micro-batch(es), 50 clips/epoch"
    )
    alone = BucketBatchSampler(range(100), [50] * 100, 1, 4, 1, 8)
    assert "per process" not in str(TrainingPlan.from_config(TrainConfig(), alone, 5, False))


@pytest.mark.parametrize(("hours", "updates"), [(1.0, 360), (0.001, 2), (0.5, 180)])
def test_target_hours_become_whole_epochs(hours: float, updates: int) -> None:
    assert plan(seconds_per_update=10, target_hours=hours).total_updates == updates


def test_due_moments() -> None:
    found = plan(max_updates=25, log_every_updates=10, validate_every_updates=12, save_every_updates=0)
    every = range(1, 26)
    assert [update for update in every if found.logs_at(update)] == [1, 10, 20, 25]
    assert [update for update in every if found.validates_at(update)] == [12, 24, 25]
    assert [update for update in every if found.saves_at(update)] == [25]


@pytest.mark.parametrize(
    ("asked", "fresh", "warmup"), [(None, True, 10), (None, False, 0), (7, False, 7), (0, True, 0)]
)
def test_warmup_is_for_fresh_discriminators_and_a_tenth_of_the_run(asked: int | None, fresh: bool, warmup: int) -> None:
    made = plan(fresh_discriminator=fresh, max_updates=100, discriminator_warmup_updates=asked)
    assert made.discriminator_warmup_updates == warmup
    assert plan(fresh_discriminator=True, max_updates=10000).discriminator_warmup_updates == 200


def test_resumed_run_keeps_its_plan_whatever_the_speed_is_now() -> None:
    config = TrainConfig(target_hours=1.0)
    kept = {"total_updates": 123, "discriminator_warmup_updates": 7}
    order = BucketBatchSampler(range(100), [50] * 100, 1, 4, 2, 8)
    resumed = TrainingPlan.from_config(config, order, 5, True, kept).with_speed(2)
    assert (resumed.total_updates, resumed.discriminator_warmup_updates) == (123, 7)
