"""The loop: one update is one step of the discriminators, then one of the generator."""

import hashlib
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import VitsTokenizer

from vits_trainer.checkpoint import Checkpoints, TrainState
from vits_trainer.config import TrainConfig
from vits_trainer.data import Batch, ClipReader, Order, load
from vits_trainer.discriminator import Discriminator
from vits_trainer.errors import DivergedRanksError
from vits_trainer.evaluation import Validation
from vits_trainer.generator import Generator
from vits_trainer.meter import Meter
from vits_trainer.objective import Objective, frozen
from vits_trainer.optim import Learner, build_optimizer, learning_rate
from vits_trainer.runtime import Runtime
from vits_trainer.tracking import Tracker

logger = logging.getLogger("vits_trainer")


@dataclass(frozen=True)
class Plan:
    """What the configuration comes to on this data and these processes."""

    training_clips: int
    validation_clips: int
    world_size: int
    clips_per_update: int
    updates_per_epoch: int
    total_updates: int
    log_every: int
    validate_every: int
    save_every: int

    @classmethod
    def of(cls, config: TrainConfig, order: Order, validation_clips: int) -> "Plan":
        """Derives it."""
        return cls(
            training_clips=len(order.rows),
            validation_clips=validation_clips,
            world_size=order.world_size,
            clips_per_update=order.batch_size * order.world_size * order.accumulation,
            updates_per_epoch=order.updates_per_epoch,
            total_updates=config.max_updates or config.epochs * order.updates_per_epoch,
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

    def validates_at(self, update: int) -> bool:
        """At every ``validate_every``-th update, and at the last."""
        return _is_due(update, self.validate_every, self.total_updates)

    def saves_at(self, update: int) -> bool:
        """At every ``save_every``-th update, and at the last."""
        return _is_due(update, self.save_every, self.total_updates)


def _is_due(update: int, every: int, last: int) -> bool:
    return update == last or (every > 0 and update % every == 0)


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
        with logging_redirect_tqdm(), self._progress() as progress:
            for batch in self.meter.timed(load(self.reader, places, self.config.data_workers)):
                if not self.step(batch.to(self.runtime.device)):
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

    def step(self, batch: Batch) -> bool:
        """Takes one micro-batch; True when it closed an update. Runs on every rank."""
        share = 1 / batch.place.in_update
        networks = [learner.network for learner in self.learners]
        found: dict[str, Tensor] = {}
        with self.runtime.accumulating(*networks, synchronise=batch.place.closes_update):
            with self.runtime.autocast():
                comparison = self.objective.synthesize(self.generator_learner.network, batch)
            if self.discriminator_learner is not None:
                with self.runtime.autocast():
                    d_losses = self.objective.discriminator_losses(self.discriminator_learner.network, comparison)
                found |= self._turn(self.discriminator_learner, d_losses, share, batch)
            with self.runtime.autocast(), frozen(self.discriminator) if self.discriminator else nullcontext():
                g_losses = self.objective.generator_losses(self.discriminator, comparison)
            found |= self._turn(self.generator_learner, g_losses, share, batch)
        self.meter.add(found, batch)
        return batch.place.closes_update

    def _turn(self, learner: Learner, losses: dict[str, Tensor], share: float, batch: Batch) -> dict[str, Tensor]:
        """One network's backward, and its step when the update closes: losses and gradient norm by full name."""
        learner.backward(losses["total"] * share)
        found = {f"{learner.name}/{name}": loss for name, loss in losses.items()}
        if batch.place.closes_update:
            rate = learning_rate(self.config, batch.place.epoch)
            found[f"grad_norm/{learner.name}"] = learner.update(rate)
        return found

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
        shown = {
            "mel": f"{scalars['generator/mel']:.3f}",
            "G": f"{scalars['generator/total']:.2f}",
            "D": f"{scalars.get('discriminator/total', 0):.2f}",
            "clips/s": f"{scalars['throughput/utterances_per_s']:.1f}",
            "GiB": f"{scalars['memory/max_allocated_gib']:.1f}",
        }
        progress.set_postfix(shown)
        if progress.disable and self.runtime.is_main:
            left_s = (self.plan.total_updates - self.state.update) * self.meter.seconds_per_update
            words = " ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("update %d/%d  %s  %.0f s left", self.state.update, self.plan.total_updates, words, left_s)

    def _validate(self) -> None:
        found = self.validation.run(self.generator, self.discriminator)
        if found:
            self.tracker.scalars(self.state.update, self.state.epoch, found)
            words = " ".join(f"{name.partition('/')[2]} {value:.4f}" for name, value in found.items())
            if self.runtime.is_main:
                logger.info("update %d  validation: %s", self.state.update, words)

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
