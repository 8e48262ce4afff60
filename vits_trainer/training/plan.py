"""Training plan: total updates, and when to log, validate and save."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vits_trainer.config.train import TrainConfig
from vits_trainer.data.sampler import UpdateSampler
from vits_trainer.utils.strings import counted

_MAX_WARMUP_UPDATES = 200


@dataclass(frozen=True)
class TrainingPlan:
    """Length and schedule of a run."""

    training_clips: int
    """Clips per epoch, each as often as it is drawn."""
    validation_clips: int
    world_size: int
    clips_per_update: int
    """0 if seconds per batch decide."""
    micro_batches: int
    """Per process in an update, at most."""
    updates_per_epoch: int
    total_updates: int
    is_finetuning: bool
    """Whether training starts from a trained voice."""
    discriminator_warmup_updates: int
    """Updates that train the discriminator only."""
    log_every: int
    validate_every: int
    save_every: int
    target_hours: float = 0.0
    """Training time that decides ``total_updates`` once the speed is known; 0 if the configuration decides it."""
    has_default_warmup: bool = False
    """Whether the discriminator's warm-up follows from ``total_updates``."""

    @classmethod
    def from_config(
        cls,
        config: TrainConfig,
        sampler: UpdateSampler,
        validation_clips: int,
        fresh_discriminator: bool,
        restored: Mapping[str, int] | None = None,
    ) -> "TrainingPlan":
        """Builds the plan.

        Args:
            config: of the run.
            sampler: of the training clips.
            validation_clips: number of clips.
            fresh_discriminator: whether a trained voice has a discriminator that was not trained with it.
            restored: values of a checkpoint's plan that stay (:func:`~vits_trainer.training.resume.restored_plan`).
        """
        restored = restored or {}
        plan = cls(
            training_clips=sampler.epoch_clips,
            validation_clips=validation_clips,
            world_size=sampler.world_size,
            clips_per_update=0 if sampler.batch_frames else sampler.update_clips,
            micro_batches=sampler.accumulation,
            updates_per_epoch=sampler.updates_per_epoch,
            total_updates=0,
            is_finetuning=config.model_name is not None,
            discriminator_warmup_updates=config.discriminator_warmup_updates or 0,
            log_every=config.log_every_updates,
            validate_every=config.validate_every_updates,
            save_every=config.save_every_updates,
            target_hours=0.0 if config.max_updates or "total_updates" in restored else config.target_hours or 0.0,
            has_default_warmup=fresh_discriminator
            and config.discriminator_warmup_updates is None
            and "discriminator_warmup_updates" not in restored,
        )
        plan = plan.with_total(config.max_updates or config.epochs * sampler.updates_per_epoch)
        return replace(plan, **restored)  # type: ignore[arg-type]

    def with_speed(self, seconds_per_update: float) -> "TrainingPlan":
        """Returns the plan with as many whole epochs as fit into ``target_hours``, at least 1."""
        if not self.target_hours:
            return self
        epochs = max(1, int(self.target_hours * 3600 / (seconds_per_update * self.updates_per_epoch)))
        return self.with_total(epochs * self.updates_per_epoch)

    def corrected(self, seconds_per_update: float, done_updates: int) -> "TrainingPlan":
        """Returns the plan for a measured speed. The discriminator's warm-up, which may have ended, stays."""
        whole = -(-done_updates // self.updates_per_epoch) * self.updates_per_epoch
        total_updates = max(whole, self.with_speed(seconds_per_update).total_updates)
        return replace(self, total_updates=total_updates)

    def with_total(self, total_updates: int) -> "TrainingPlan":
        """Returns the plan with another number of updates."""
        warmup = min(_MAX_WARMUP_UPDATES, total_updates // 10)
        return replace(
            self,
            total_updates=total_updates,
            discriminator_warmup_updates=warmup if self.has_default_warmup else self.discriminator_warmup_updates,
        )

    def __str__(self) -> str:
        """One line for the log."""
        clips = self.clips_per_update or self.training_clips // self.updates_per_epoch
        average = "" if self.clips_per_update else " on average"
        each = ""
        if self.world_size > 1:
            in_update, in_epoch = (_share(count, self.world_size) for count in (clips, self.training_clips))
            each = (
                f"; per process: {in_update} clips/update{average} in at most "
                f"{counted(self.micro_batches, 'micro-batch', 'micro-batches')}, {in_epoch} clips/epoch"
            )
        return (
            f"{counted(self.training_clips, 'training clip')}, {counted(self.validation_clips, 'validation clip')}; "
            f"{clips} clips/update{average}, {self.updates_per_epoch} updates/epoch, {self.total_updates} updates "
            f"total{each}"
        )

    def logs_at(self, update: int) -> bool:
        """Whether to log: at the first update, every ``log_every``-th, and the last."""
        return update in (1, self.total_updates) or update % self.log_every == 0

    def validates_before(self, update: int) -> bool:
        """Whether to validate before training: a trained voice is the baseline of its fine-tuning."""
        return self.is_finetuning and update == 0

    def validates_at(self, update: int) -> bool:
        """Whether to validate: every ``validate_every``-th update, and the last."""
        return _is_due(update, self.validate_every, self.total_updates)

    def saves_at(self, update: int) -> bool:
        """Whether to save: every ``save_every``-th update, and the last."""
        return _is_due(update, self.save_every, self.total_updates)


def _is_due(update: int, every: int, last: int) -> bool:
    return update == last or (every > 0 and update % every == 0)


def _share(clips: int, processes: int) -> str:
    """Clips per process; the processes differ by at most one."""
    return f"{clips // processes}" if clips % processes == 0 else f"{clips // processes} or {clips // processes + 1}"
