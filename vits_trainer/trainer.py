"""The loop: one update is one step of the discriminators, then one of the generator."""

import hashlib
import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import VitsTokenizer

from vits_trainer.checkpoint import Checkpoints, TrainState
from vits_trainer.config import TrainConfig
from vits_trainer.data import Batch, ClipReader, Order, Rejection, load
from vits_trainer.discriminator import Discriminator
from vits_trainer.errors import DivergedRanksError
from vits_trainer.evaluation import Validation
from vits_trainer.generator import Generator
from vits_trainer.metrics import RunningMeans, means
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
        by_epochs = config.epochs * order.updates_per_epoch
        return cls(
            training_clips=len(order.rows),
            validation_clips=validation_clips,
            world_size=order.world_size,
            clips_per_update=order.batch_size * order.world_size * order.accumulation,
            updates_per_epoch=order.updates_per_epoch,
            total_updates=min(config.max_updates, by_epochs) if config.max_updates else by_epochs,
            log_every=config.log_every_updates,
            validate_every=config.validate_every_updates,
            save_every=config.save_every_updates,
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
        with self._progress() as progress:
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
        scalars, rejections = self.meter.read(self.state)
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
        self.meter.count(self.state)
        place = self.checkpoints.save(self.state, self.generator, self.discriminator, self.learners, self.tokenizer)
        if self.runtime.is_main:
            logger.info("update %d  saved %s", self.state.update, place)

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


class Meter:
    """Losses, counts and times between logging points. Nothing leaves the device before :meth:`read`."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.means = RunningMeans()
        self.seconds_per_update = 0.0
        self._uncounted = [0, 0]
        """Clips trained and rejected here that :meth:`count` has not seen."""
        self._restart()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches through, measuring how long they kept the loop waiting."""
        self._restart()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, values: dict[str, Tensor], batch: Batch) -> None:
        """Takes in one micro-batch."""
        clips, rejected = len(batch.clip_ids), len(batch.rejections)
        self.means.add(values, weight=clips)
        self._rejections += batch.rejections
        self._clips += clips
        self._audio_s += batch.audio_s
        self._updates += batch.place.closes_update
        self._uncounted = [self._uncounted[0] + clips, self._uncounted[1] + rejected]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside (validating, saving) is left out of the throughput."""
        began = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - began

    def count(self, state: TrainState) -> None:
        """Adds the clips of all ranks since the last call to ``state``. Runs on every rank."""
        local = torch.tensor(self._uncounted, dtype=torch.float64, device=self.runtime.device)
        trained, rejected = self.runtime.sum(local).tolist()
        state.clips_trained += int(trained)
        state.clips_rejected += int(rejected)
        self._uncounted = [0, 0]

    def read(self, state: TrainState) -> tuple[dict[str, float], list[Rejection]]:
        """Scalars over all ranks since the last call, and the clips rejected; counts clips in ``state``.

        Runs on every rank. A CPU-GPU sync point.
        """
        device = self.runtime.device
        names = self.means.names()
        scalars = means(names, self.runtime.sum(self.means.state(names, device)))
        elapsed_s = time.perf_counter() - self._started - self._paused_s
        local = [self._clips, len(self._rejections), self._audio_s, self._waited_s / elapsed_s]
        totals = self.runtime.sum(torch.tensor(local, dtype=torch.float64, device=device)).tolist()
        clips, rejected, audio_s, waited = totals
        rejections = [clip for found in self.runtime.gather(self._rejections) for clip in found] if rejected else []
        self.count(state)
        self.seconds_per_update = elapsed_s / max(self._updates, 1)
        scalars |= {
            "data/trained": state.clips_trained,
            "data/rejected": state.clips_rejected,
            "throughput/utterances_per_s": clips / elapsed_s,
            "throughput/audio_s_per_s": audio_s / elapsed_s,
            "time/data_wait_fraction": waited / self.runtime.world_size,
            "memory/max_allocated_gib": _peak_memory_gib(device),
        }
        self._restart()
        return scalars, rejections

    def _restart(self) -> None:
        self.means.reset()
        self._rejections: list[Rejection] = []
        self._clips, self._updates = 0, 0
        self._audio_s, self._waited_s, self._paused_s = 0.0, 0.0, 0.0
        self._started = time.perf_counter()


def _peak_memory_gib(device: torch.device) -> float:
    """The most memory that tensors took on the GPU, or this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
