"""What a configuration comes to on its data and processes: how long, and when what is due."""

from collections.abc import Mapping
from dataclasses import dataclass

from vits_trainer.config.train import TrainConfig
from vits_trainer.data.sampler import BucketBatchSampler
from vits_trainer.data.streaming_sampler import StreamingBatchSampler


@dataclass(frozen=True)
class TrainingPlan:
    """What the configuration comes to on this data and these processes."""

    training_clips: int
    validation_clips: int
    world_size: int
    clips_per_update: int
    """0 where their seconds decide."""
    micro_batches: int
    """Of each process in an update, at most."""
    updates_per_epoch: int
    total_updates: int
    is_finetuning: bool
    """Whether the voice was trained before."""
    discriminator_warmup_updates: int
    """Updates in which the discriminators learn alone."""
    log_every: int
    validate_every: int
    save_every: int

    @classmethod
    def from_config(
        cls,
        config: TrainConfig,
        order: BucketBatchSampler | StreamingBatchSampler,
        validation_clips: int,
        fresh_judges: bool,
        seconds_per_update: float = 0,
        kept: Mapping[str, int] | None = None,
    ) -> "TrainingPlan":
        """Derives it.

        Args:
            config: what was asked for.
            order: of the training clips.
            validation_clips: held out.
            fresh_judges: whether fresh discriminators meet a trained voice.
            seconds_per_update: as measured; ``target_hours`` becomes whole epochs by it, at least one.
            kept: what a checkpoint's plan came to, as far as the same was asked for then.
        """
        epochs = config.epochs
        if config.target_hours and seconds_per_update:
            epochs = max(1, int(config.target_hours * 3600 / (seconds_per_update * order.updates_per_epoch)))
        total_updates = config.max_updates or epochs * order.updates_per_epoch
        warmup_updates = config.discriminator_warmup_updates
        if warmup_updates is None:
            warmup_updates = min(200, total_updates // 10) if fresh_judges else 0
        decided = {"total_updates": total_updates, "discriminator_warmup_updates": warmup_updates} | dict(kept or {})
        return cls(
            training_clips=order.clips,
            validation_clips=validation_clips,
            world_size=order.world_size,
            clips_per_update=0 if order.batch_frames else order.update_clips,
            micro_batches=order.accumulation,
            updates_per_epoch=order.updates_per_epoch,
            is_finetuning=config.model_name is not None,
            log_every=config.log_every_updates,
            validate_every=config.validate_every_updates,
            save_every=config.save_every_updates,
            **decided,
        )

    def __str__(self) -> str:
        """For people."""
        clips = self.clips_per_update or self.training_clips // self.updates_per_epoch
        average = "" if self.clips_per_update else " on the average"
        each = ""
        if self.world_size > 1:
            in_update, in_epoch = (_even(count, self.world_size) for count in (clips, self.training_clips))
            each = (
                f"; each process takes {in_update} clips an update{average}, in at most {self.micro_batches} "
                f"micro-batch(es), and {in_epoch} an epoch"
            )
        return (
            f"{self.training_clips} clips to train on, {self.validation_clips} to validate with; "
            f"{clips} clips an update{average}, {self.updates_per_epoch} updates an epoch, "
            f"{self.total_updates} updates in all{each}"
        )

    def logs_at(self, update: int) -> bool:
        """At the first update, at every ``log_every``-th, and at the last."""
        return update in (1, self.total_updates) or update % self.log_every == 0

    def validates_before(self, update: int) -> bool:
        """Once before the first update, where a trained voice is tuned: what it is to be compared with."""
        return self.is_finetuning and update == 0

    def validates_at(self, update: int) -> bool:
        """At every ``validate_every``-th update, and at the last."""
        return _is_due(update, self.validate_every, self.total_updates)

    def saves_at(self, update: int) -> bool:
        """At every ``save_every``-th update, and at the last."""
        return _is_due(update, self.save_every, self.total_updates)


def _is_due(update: int, every: int, last: int) -> bool:
    return update == last or (every > 0 and update % every == 0)


def _even(clips: int, processes: int) -> str:
    """How many clips a process takes of so many: processes differ by one where they do not go round."""
    return f"{clips // processes}" if clips % processes == 0 else f"{clips // processes} or {clips // processes + 1}"
