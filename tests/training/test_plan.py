"""The training plan: epochs, updates, schedules, warm-up."""

import pytest

from vits_trainer.config.train import TrainConfig
from vits_trainer.data.sampler import BucketBatchSampler
from vits_trainer.training.plan import TrainingPlan


def plan(seconds_per_update: float = 0, fresh_discriminator: bool = False, **settings: object) -> TrainingPlan:
    config = TrainConfig(**settings)
    sampler = BucketBatchSampler(range(100), [50] * 100, 1, config.batch_size, 2, config.gradient_accumulation_steps)
    result = TrainingPlan.from_config(config, sampler, 5, fresh_discriminator)
    return result.with_speed(seconds_per_update) if seconds_per_update else result


def test_epochs_become_updates() -> None:
    # 100 clips, 64 per update: one full update, and one with the remaining clips.
    result = plan(epochs=3)
    assert (result.updates_per_epoch, result.total_updates, result.clips_per_update) == (2, 6, 64)


def test_max_updates_overrides_epochs() -> None:
    assert plan(epochs=3, max_updates=100).total_updates == 100


def test_plan_shows_the_share_of_each_process() -> None:
    # 64 clips per update on 2 processes, in 8 micro-batches of 4; 100 clips per epoch.
    assert str(plan(epochs=3)).endswith(
        "; per process: 32 clips/update in at most 8 micro-batches, 50 clips/epoch"
    )
    single = BucketBatchSampler(range(100), [50] * 100, 1, 4, 1, 8)
    assert "per process" not in str(TrainingPlan.from_config(TrainConfig(), single, 5, False))


@pytest.mark.parametrize(("hours", "updates"), [(1.0, 360), (0.001, 2), (0.5, 180)])
def test_target_hours_become_whole_epochs(hours: float, updates: int) -> None:
    assert plan(seconds_per_update=10, target_hours=hours).total_updates == updates


@pytest.mark.parametrize(("seconds_per_update", "done", "updates"), [(2, 20, 1800), (1000, 21, 22), (1, 20, 3600)])
def test_measured_speed_corrects_the_plan(seconds_per_update: float, done: int, updates: int) -> None:
    """At most 22 updates if 21 are done: epochs are whole. The warm-up of the plan stays."""
    planned = plan(seconds_per_update=10, fresh_discriminator=True, target_hours=1.0)
    corrected = planned.corrected(seconds_per_update, done)
    assert corrected.total_updates == updates
    assert corrected.discriminator_warmup_updates == planned.discriminator_warmup_updates == 36


def test_when_to_log_validate_and_save() -> None:
    result = plan(max_updates=25, log_every_updates=10, validate_every_updates=12, save_every_updates=0)
    every = range(1, 26)
    assert [update for update in every if result.logs_at(update)] == [1, 10, 20, 25]
    assert [update for update in every if result.validates_at(update)] == [12, 24, 25]
    assert [update for update in every if result.saves_at(update)] == [25]


@pytest.mark.parametrize(
    ("setting", "fresh", "warmup"), [(None, True, 10), (None, False, 0), (7, False, 7), (0, True, 0)]
)
def test_warmup_of_a_fresh_discriminator_is_a_tenth_of_the_run(setting: int | None, fresh: bool, warmup: int) -> None:
    result = plan(fresh_discriminator=fresh, max_updates=100, discriminator_warmup_updates=setting)
    assert result.discriminator_warmup_updates == warmup
    assert plan(fresh_discriminator=True, max_updates=10000).discriminator_warmup_updates == 200


def test_resumed_run_keeps_its_plan_at_another_speed() -> None:
    config = TrainConfig(target_hours=1.0)
    restored = {"total_updates": 123, "discriminator_warmup_updates": 7}
    sampler = BucketBatchSampler(range(100), [50] * 100, 1, 4, 2, 8)
    resumed = TrainingPlan.from_config(config, sampler, 5, True, restored).with_speed(2)
    assert (resumed.total_updates, resumed.discriminator_warmup_updates) == (123, 7)
