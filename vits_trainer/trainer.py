"""The loop: one update is one step of the discriminators, then one of the generator."""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import VitsTokenizer

from vits_trainer.checkpoint import Checkpoints, TrainState
from vits_trainer.config import TrainConfig
from vits_trainer.data import Batch, ClipReader, Order, load
from vits_trainer.discriminator import Discriminator
from vits_trainer.errors import DivergedRanksError, OutOfMemoryError
from vits_trainer.evaluation import Validation
from vits_trainer.generator import Generator
from vits_trainer.meter import Meter
from vits_trainer.objective import Objective, frozen
from vits_trainer.optim import Learner, build_optimizer, learning_rate
from vits_trainer.runtime import Runtime, is_out_of_memory
from vits_trainer.tracking import Tracker

logger = logging.getLogger("vits_trainer")

_SHOWN = (
    ("mel", "generator/mel", 3),
    ("G", "generator/total", 2),
    ("D", "discriminator/total", 2),
    ("clips/s", "throughput/utterances_per_s", 1),
    ("GiB", "memory/max_allocated_gib", 1),
)
"""What the progress bar shows: its word, the scalar, decimals."""


@dataclass(frozen=True)
class Plan:
    """What the configuration comes to on this data and these processes."""

    training_clips: int
    validation_clips: int
    world_size: int
    clips_per_update: int
    updates_per_epoch: int
    total_updates: int
    tunes: bool
    """Whether the voice was trained before."""
    warmup_updates: int
    """Updates in which the discriminators learn alone."""
    log_every: int
    validate_every: int
    save_every: int

    @classmethod
    def of(
        cls, config: TrainConfig, order: Order, validation_clips: int, fresh_judges: bool, seconds_per_update: float = 0
    ) -> "Plan":
        """Derives it.

        Args:
            config: what was asked for.
            order: of the training clips.
            validation_clips: held out.
            fresh_judges: whether fresh discriminators meet a trained voice.
            seconds_per_update: as measured; ``target_hours`` becomes whole epochs by it, at least one.
        """
        epochs = config.epochs
        if config.target_hours and seconds_per_update:
            epochs = max(1, int(config.target_hours * 3600 / (seconds_per_update * order.updates_per_epoch)))
        total_updates = config.max_updates or epochs * order.updates_per_epoch
        warmup_updates = config.discriminator_warmup_updates
        if warmup_updates is None:
            warmup_updates = min(200, total_updates // 10) if fresh_judges else 0
        return cls(
            training_clips=len(order.rows),
            validation_clips=validation_clips,
            world_size=order.world_size,
            clips_per_update=order.batch_size * order.world_size * order.accumulation,
            updates_per_epoch=order.updates_per_epoch,
            total_updates=total_updates,
            tunes=config.model_name is not None,
            warmup_updates=warmup_updates,
            log_every=config.log_every_updates,
            validate_every=config.validate_every_updates,
            save_every=config.save_every_updates,
        )

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.training_clips} clips to train on, {self.validation_clips} to validate with; up to "
            f"{self.clips_per_update} clips an update, {self.updates_per_epoch} updates an epoch, "
            f"{self.total_updates} updates in all"
        )

    def logs_at(self, update: int) -> bool:
        """At the first update, at every ``log_every``-th, and at the last."""
        return update in (1, self.total_updates) or update % self.log_every == 0

    def validates_before(self, update: int) -> bool:
        """Once before the first update, where a trained voice is tuned: what it is to be compared with."""
        return self.tunes and update == 0

    def validates_at(self, update: int) -> bool:
        """At every ``validate_every``-th update, and at the last."""
        return _is_due(update, self.validate_every, self.total_updates)

    def saves_at(self, update: int) -> bool:
        """At every ``save_every``-th update, and at the last."""
        return _is_due(update, self.save_every, self.total_updates)


def _is_due(update: int, every: int, last: int) -> bool:
    return update == last or (every > 0 and update % every == 0)


def named(network: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses under the names they are logged by."""
    return {f"{network}/{name}": loss for name, loss in losses.items()}


class Trainer:
    """Two networks, their data, and the clock. Building it runs on every rank."""

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        runtime: Runtime,
        objective: Objective,
        generator: Generator,
        discriminator: Discriminator | None,
        tokenizer: VitsTokenizer,
        order: Order,
        reader: ClipReader,
        validation: Validation,
        checkpoints: Checkpoints,
        tracker: Tracker,
    ) -> None:
        # What it is told
        self.config = config
        self.plan = plan
        # Its parts
        self.runtime = runtime
        self.objective = objective
        self.generator = generator
        self.discriminator = discriminator
        self.tokenizer = tokenizer
        self.order = order
        self.reader = reader
        self.validation = validation
        self.checkpoints = checkpoints
        self.tracker = tracker
        self.generator_learner = self._learner("generator", generator)
        self.discriminator_learner = None if discriminator is None else self._learner("discriminator", discriminator)
        # Where it stands
        self.state = TrainState()
        self.meter = Meter(runtime)

    @property
    def learners(self) -> list[Learner]:
        """Both networks as they are trained; the generator alone under the mel objective."""
        return [self.generator_learner, *([self.discriminator_learner] if self.discriminator_learner else [])]

    @property
    def checkpoint_gib(self) -> float:
        """Size of one checkpoint: each trained weight with AdamW's two moments, in float32."""
        return sum(p.numel() for learner in self.learners for p in learner.network.parameters()) * 12 / 2**30

    def resume(self, place: Path) -> None:
        """Goes back to the checkpoint at ``place``. Runs on every rank."""
        self.state = self.checkpoints.restore(place, self.generator, self.discriminator, self.learners)
        self.tracker.forget_after(self.state.update)
        if self.runtime.is_main:
            logger.info("Resumed from %s at update %d.", place, self.state.update)

    def fit(self) -> TrainState:
        """Trains up to the plan's last update. Runs on every rank."""
        self.generator.train()
        places = self.order.after(self.state.update, self.plan.total_updates, self.runtime.rank)
        if self.plan.validates_before(self.state.update):
            self._validate()
        with logging_redirect_tqdm(), self._progress() as progress:
            for batch in self.meter.timed(load(self.reader, places, self.config.data_workers)):
                alone = self.state.update < self.plan.warmup_updates
                if not self.step(batch.to(self.runtime.device), discriminators_alone=alone):
                    continue
                self.state.update += 1
                self.state.epoch = batch.place.epoch
                progress.update()
                if self.plan.logs_at(self.state.update):
                    self._log(progress)
                with self.meter.paused():
                    if self.plan.validates_at(self.state.update):
                        self._validate()
                    if self.plan.saves_at(self.state.update):
                        self._save()
        self._compare_ranks()
        return self.state

    def rehearse(self) -> float:
        """Seconds that an update will take, by forward and backward passes that change nothing. Runs on every rank.

        The longest clips go first, so that what does not fit into memory is known now, not in the run's third hour.
        """
        places = self.order.rehearsal(self.reader.sizes(), self.runtime.rank)
        took_s = 0.0
        with self.runtime.own_rng():
            for batch in load(self.reader, places, workers=0):
                began = time.perf_counter()
                self.step(batch.to(self.runtime.device), discriminators_alone=False)
                self.meter.read()  # waits for the device
                took_s = time.perf_counter() - began
        self.meter.count()
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        return float(max(self.runtime.gather(took_s))) * self.order.accumulation

    def step(self, batch: Batch, discriminators_alone: bool) -> bool:
        """Takes one micro-batch; True when it closed an update. Runs on every rank.

        Args:
            batch: on the device.
            discriminators_alone: the generator's losses are only measured.

        Raises:
            OutOfMemoryError: it does not fit; names its clips' lengths and the flags that help.
        """
        networks = [learner.network for learner in self.learners]
        with (
            self._explaining_memory(batch),
            self.runtime.accumulating(*networks, synchronise=batch.place.closes_update),
        ):
            found = self._turns(batch, discriminators_alone)
        self.meter.add(found, batch)
        return batch.place.closes_update

    def _turns(self, batch: Batch, discriminators_alone: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with self.runtime.autocast(), torch.set_grad_enabled(not discriminators_alone):
            comparison = self.objective.synthesize(self.generator_learner.network, batch)
        if self.discriminator_learner is not None:
            with self.runtime.autocast():
                d_losses = self.objective.discriminator_losses(self.discriminator_learner.network, comparison)
            found |= named("discriminator", d_losses) | self._learn(self.discriminator_learner, d_losses, batch)
        judging = frozen(self.discriminator) if self.discriminator else nullcontext()
        with self.runtime.autocast(), judging, torch.set_grad_enabled(not discriminators_alone):
            g_losses = self.objective.generator_losses(self.discriminator, comparison)
        found |= named("generator", g_losses)
        return found if discriminators_alone else found | self._learn(self.generator_learner, g_losses, batch)

    def _learn(self, learner: Learner, losses: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """One network's backward, and its step when the update closes: its gradient's norm, then."""
        learner.backward(losses["total"] / batch.place.in_update)
        if not batch.place.closes_update:
            return {}
        return {f"grad_norm/{learner.name}": learner.update(learning_rate(self.config, batch.place.epoch))}

    @contextmanager
    def _explaining_memory(self, batch: Batch) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            spec = self.objective.spec
            lengths_s = sorted((batch.frame_lengths * spec.hop / spec.sampling_rate).tolist())
            raise OutOfMemoryError(
                f"Out of memory on {self.runtime.device} with {len(lengths_s)} clips of "
                f"{', '.join(f'{length:.1f}' for length in lengths_s)} s. Lower --batch_size (and raise "
                "--gradient_accumulation_steps as much), use --precision bf16, lower --segment_frames, or prepare the "
                "data with a lower --max_duration_s."
            ) from error

    def _learner(self, name: str, network: Generator | Discriminator) -> Learner:
        network.to(self.runtime.device)
        optimizer = build_optimizer(network.parameters(), self.config)
        wrapped = self.runtime.wrap(network)
        return Learner(name, wrapped, optimizer, self.runtime.gradient_scaler(), self.config.max_grad_norm)

    def _log(self, progress: "tqdm[NoReturn]") -> None:
        scalars, rejections = self.meter.read()
        self._count_clips()
        scalars |= {"data/trained": self.state.clips_trained, "data/rejected": self.state.clips_rejected}
        scalars["optim/learning_rate"] = learning_rate(self.config, self.state.epoch)
        self.tracker.rejected(self.state.update, self.state.epoch, rejections)
        self.tracker.scalars(self.state.update, self.state.epoch, scalars)
        shown = {short: f"{scalars[name]:.{digits}f}" for short, name, digits in _SHOWN if name in scalars}
        progress.set_postfix(shown)
        if progress.disable and self.runtime.is_main:
            left_s = (self.plan.total_updates - self.state.update) * self.meter.seconds_per_update
            words = " ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("update %d/%d  %s  %.0f s left", self.state.update, self.plan.total_updates, words, left_s)

    def _validate(self) -> None:
        found = self.validation.run(self.generator, self.discriminator)
        if not found:
            return
        if self.objective.adversarial:
            found["validation/mel_from_text"] = self.validation.mel_from_text(self.generator)
        found["validation/constant_frame_mel"] = self.validation.constant_frame_mel
        self.tracker.scalars(self.state.update, self.state.epoch, found)
        if self.runtime.is_main:
            words = " ".join(f"{name.partition('/')[2]} {value:.4f}" for name, value in found.items())
            logger.info("update %d  validation: %s", self.state.update, words)
            samples = self.validation.samples(self.generator, self.config.validation_samples)
            self.tracker.samples(self.state.update, self.state.epoch, samples, self.objective.spec)

    def _save(self) -> None:
        self._count_clips()
        place = self.checkpoints.save(self.state, self.generator, self.discriminator, self.learners, self.tokenizer)
        if self.runtime.is_main:
            logger.info("update %d  saved %s", self.state.update, place)

    def _count_clips(self) -> None:
        trained, rejected = self.meter.count()
        self.state.clips_trained += trained
        self.state.clips_rejected += rejected

    def _compare_ranks(self) -> None:
        """Raises if the ranks' weights differ at the end: they took different steps. Runs on every rank."""
        digest = hashlib.sha256()
        for learner in self.learners:
            for parameter in learner.network.parameters():
                digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        found = self.runtime.gather(digest.hexdigest())
        if len(set(found)) > 1:
            raise DivergedRanksError(f"The ranks ended with different weights ({found}): they took different steps.")
        if self.runtime.is_main:
            logger.info("weights of all %d rank(s): sha256 %s", len(found), found[0])

    def _progress(self) -> "tqdm[NoReturn]":
        return tqdm(
            total=self.plan.total_updates,
            initial=self.state.update,
            unit="update",
            disable=None if self.runtime.is_main else True,  # None: only where there is a terminal
            dynamic_ncols=True,
        )
