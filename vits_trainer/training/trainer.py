"""The loop: one update is one step of the discriminators, then one of the generator."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import VitsTokenizer

from vits_trainer.config.train import TrainConfig
from vits_trainer.data.clip_accounting import Accounts
from vits_trainer.data.dataloader import by_update, load
from vits_trainer.data.dataset import Batch, Reader
from vits_trainer.data.sampler import Order
from vits_trainer.data.streaming_sampler import LaneOrder
from vits_trainer.distributed.runtime import Runtime, is_out_of_memory
from vits_trainer.distributed.shutdown import Interruption
from vits_trainer.distributed.stragglers import Seat, Stragglers
from vits_trainer.distributed.watchdog import StallAlarm
from vits_trainer.evaluation.speakers import SpeakerMel, worst
from vits_trainer.evaluation.speech_metrics import ClipScore, Jury, means
from vits_trainer.models.compile import compile_fixed_shapes, compiler_failure
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.tracking.tracker import Outcome, Tracker
from vits_trainer.training.checkpoint import Checkpoints, TrainState, write_networks
from vits_trainer.training.early_stopping import Selection
from vits_trainer.training.meter import Meter, duration
from vits_trainer.training.nonfinite_guard import Watch
from vits_trainer.training.objective import Normalisers, Objective
from vits_trainer.training.optim import Average, Learner, build_optimizer, learning_rate
from vits_trainer.training.plan import Plan
from vits_trainer.training.train_step import Turns
from vits_trainer.training.validation import Validation
from vits_trainer.utils.cpu_threads import STARVED_REMEDY, time_threads
from vits_trainer.utils.errors import (
    DivergedRanksError,
    NonFiniteLossError,
    OutOfMemoryError,
    TooManyRejectedError,
    UnreadableShardError,
)
from vits_trainer.utils.files import discard

logger = logging.getLogger("vits_trainer")

_SHOWN = (
    ("mel", "generator/mel", 3),
    ("G", "generator/total", 2),
    ("D", "discriminator/total", 2),
    ("clips/s", "throughput/utterances_per_s", 1),
    ("GiB", "memory/max_allocated_gib", 1),
)
"""What the progress bar shows: its word, the scalar, decimals."""


class Agreement(NamedTuple):
    """What all ranks know before an update."""

    normalisers: Normalisers
    """What its losses are divided by."""
    has_incidents: bool
    """Whether any rank has something to tell: clips that cannot be used, updates that came to no finite number."""
    stops: bool
    """Whether to stop before it."""
    own_reason: str
    """Why, if it was this rank that was asked to."""


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
        order: Order | LaneOrder,
        reader: Reader,
        accounts: Accounts,
        validation: Validation,
        checkpoints: Checkpoints,
        tracker: Tracker,
        interruption: Interruption,
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
        self.interruption = interruption
        generator.recomputes = config.gradient_checkpointing
        if config.compile:
            compile_fixed_shapes(generator, discriminator)
        judge = None if discriminator is None else self._learner("discriminator", discriminator)
        learner = self._learner("generator", generator)
        self.turns = Turns(runtime, objective, learner, discriminator, judge, config.compile)
        # Where it stands
        self.state = TrainState()
        self.meter = Meter(runtime, self.turns.alone)
        self.stragglers = Stragglers(runtime.gather(Seat.of(runtime)))
        self.watch = Watch(config, runtime, accounts, tracker, self._keep_networks)
        self.selection = Selection(config.best_metric, config.patience)
        self.jury = Jury(config.scores, objective.spec.sampling_rate, config.asr) if config.scores else None
        self._saved_update = 0

    @property
    def checkpoint_gib(self) -> float:
        """Size of one checkpoint: the weights, of each trained one AdamW's two moments, and its average; float32."""
        counted = 0
        for learner in self.turns.learners:
            moments_and_average = 3 if learner.average else 2
            for p in learner.network.parameters():
                counted += p.numel() * (1 + moments_and_average * p.requires_grad)
        return counted * 4 / 2**30

    def resume(self, place: Path) -> None:
        """Goes back to the checkpoint at ``place``. Runs on every rank."""
        networks = (self.generator, self.discriminator, self.turns.learners)
        self.state, losses = self.checkpoints.restore(place, *networks)
        self.meter.restore(losses)
        begins_epoch = self.state.update % self.order.updates_per_epoch == 0
        self.watch.accounts.restore(self.state.accounts, self.runtime.is_main, begins_epoch)
        self._saved_update = self.state.update

    def examine(self) -> None:
        """Leaves out the held-out clips that cannot be used, before anything is judged by them. Runs on every rank.

        Raises:
            TooManyRejectedError: too many, or all of them.
        """
        self.watch.held_out(self.validation.examine(), self.state)

    def fit(self) -> bool:
        """Trains up to the plan's last update. Runs on every rank.

        Returns:
            False if it was asked to stop before; what was done is saved then.

        Raises:
            NothingTrainedError: no update of the run reached the weights.
        """
        if self.state.update >= self.plan.total_updates and self.runtime.is_main:
            logger.info(
                "Nothing is left to train: the run ends at update %d, and %d are done.",
                self.plan.total_updates,
                self.state.update,
            )
        self.generator.train()
        places = self.order.after(self.state.update, self.plan.total_updates, self.runtime.rank)
        alarm = StallAlarm(self.config.rank_timeout_s, lambda words: self.tracker.alert("Stalled", words))
        with logging_redirect_tqdm(), self._progress() as progress, self._saving_before_it_ends(), alarm:
            # Not before: workers that a signal reaches while they start have what they inherited from this process.
            updates = by_update(load(self.reader, places, self.config.data_workers))
            if self.plan.validates_before(self.state.update):
                self._record(*self._validate())
            for update in self.meter.timed(updates):
                agreed = self._agree(update)
                if agreed.stops:
                    self._stop(agreed.own_reason)
                    return False
                self.watch.heed(update, self.state, agreed.has_incidents)
                if agreed.normalisers.clips:
                    with self.turns.alone.measuring():
                        self.step(update, agreed.normalisers)
                self.state.update += 1
                self.state.epoch = update[0].place.epoch
                progress.update()
                self._do_what_is_due(progress)
                alarm.alive()
                if self.state.update == self.plan.total_updates:  # sooner than planned, where patience ends it
                    break
        self._compare_ranks()
        self.watch.require_trained(self.state)
        return True

    def take_the_average(self) -> None:
        """Gives the generator its averaged weights, where it keeps any: the voice that the run is for."""
        average = self.turns.generator.average
        if average is not None:
            average.put_in_place()

    def rehearse(self) -> float:
        """Seconds that an update will take, by forward and backward passes that change nothing. Runs on every rank.

        The longest clips go first, so that what does not fit into memory is known now, not in the run's third hour.
        """
        took_s = 0.0
        places = self.order.rehearsal(self.runtime.rank)
        # The first time round, compiling takes minutes that no update after it does.
        for batch in load(self.reader, places * 2 if self.config.compile else places, workers=0):
            took_s = self._pass_s(batch)
            typical = batch
        if self.runtime.chooses_threads and not self.config.deterministic:
            took_s = self._choose_threads(lambda: self._pass_s(typical))
        for learner in self.turns.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        return float(max(self.runtime.gather(took_s))) * self.order.accumulation

    def _pass_s(self, batch: Batch) -> float:
        """Seconds of a forward and backward pass that changes no weights. Runs on every rank."""
        began = time.perf_counter()
        self._take(batch, self._agree([batch]).normalisers, discriminators_alone=False, closes=True, rate=None)
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)
        return time.perf_counter() - began

    def _choose_threads(self, work: Callable[[], float]) -> float:
        """Chooses one CPU thread or all, whichever does ``work`` faster.

        The sums of a convolution depend on their number, so a resumed run keeps it (:func:`resumption.keep_threads`).

        Returns:
            Seconds that ``work`` takes with it.
        """
        times = time_threads(work, torch.get_num_threads(), torch.set_num_threads)
        self.runtime.use_threads(times.fastest)
        logger.info("CPU threads: %d (a micro-batch takes %s)", times.fastest, times)
        if times.is_starved:
            logger.warning("%s", STARVED_REMEDY)
        return min(times.all_s, times.one_s)

    def step(self, update: Sequence[Batch], normalisers: Normalisers) -> None:
        """One step of the discriminators, then one of the generator. Runs on every rank.

        Args:
            update: this rank's micro-batches of it.
            normalisers: what its losses are divided by, on all ranks.

        Raises:
            OutOfMemoryError: it does not fit; names its clips' lengths and the flags that help.
        """
        self.runtime.reseed(self.config.seed, self.state.update)
        alone = self.state.update < self.plan.warmup_updates
        rate = self._learning_rate(update[0].place.epoch, self.state.update)
        shares: dict[str, Tensor] = {}
        found = []
        for batch in update:
            closes = batch is update[-1]
            found.append(self._take(batch, normalisers, alone, closes, rate if closes else None))
            shares |= {name: shares[name] + value if name in shares else value for name, value in found[-1].items()}
        norms = [value for name, value in shares.items() if name.startswith("grad_norm/")]
        self.meter.add(shares, update, normalisers.clips, reached=torch.isfinite(torch.stack(norms)).all())
        self.watch.add(self.state.update + 1, int(normalisers.clips), update, found)
        self.state.clips_trained += int(normalisers.clips)

    def _learning_rate(self, epoch: int, update: int) -> float:
        return learning_rate(self.config, epoch, update, self.plan.total_updates)

    def _agree(self, update: Sequence[Batch]) -> Agreement:
        """What all ranks must know before an update, in one exchange on the host's side. Runs on every rank."""
        counts = [self.objective.normalisers(batch) for batch in update]
        # Saving takes as long as it did before, or at first as on a slow disk.
        saving_s = self.checkpoints.took_s or 5 + 20 * self.checkpoint_gib
        reason = self.interruption.asked(needs_s=2 * (self.meter.slowest_update_s + saving_s))
        own = [*(sum(column) for column in zip(*counts, strict=True)), self.watch.incidents(update), bool(reason)]
        *totals, incidents, stopping = self.runtime.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        return Agreement(Normalisers(*totals), incidents > 0, stopping > 0, reason)

    @contextmanager
    def _saving_before_it_ends(self) -> Iterator[None]:
        """Bad clips or numbers end a run on all ranks alike, with good weights: these are not lost."""
        try:
            yield
        except (NonFiniteLossError, TooManyRejectedError, UnreadableShardError):
            if self._saved_update < self.state.update:
                self._save()
            raise

    def _keep_networks(self, folder: Path) -> None:
        write_networks(folder, self.generator, self.discriminator, self.tokenizer, self.config)

    def _take(
        self, batch: Batch, normalisers: Normalisers, discriminators_alone: bool, closes: bool, rate: float | None
    ) -> dict[str, Tensor]:
        """:meth:`Turns.take`, saying what to do where memory runs out, and which rank is missing where gradients do not
        meet. Runs on every rank."""
        try:
            return self.turns.take(batch, normalisers, discriminators_alone, closes, rate)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                meaning = self.runtime.lost(error) or (compiler_failure(error) if self.config.compile else None)
                if meaning is None:
                    raise
                raise meaning from error
            spec = self.objective.spec
            lengths_s = sorted((batch.frame_lengths * spec.hop / spec.sampling_rate).tolist())
            raise OutOfMemoryError(
                f"Out of memory on {self.runtime.device} with {len(lengths_s)} clips of "
                f"{', '.join(f'{length:.1f}' for length in lengths_s)} s. Lower --batch_size (and raise "
                "--gradient_accumulation_steps as much), use --gradient_checkpointing true or --precision bf16, lower "
                "--segment_frames, or prepare the data with a lower --max_duration_s."
            ) from error

    def _learner(self, name: str, network: Generator | Discriminator) -> Learner:
        network.to(self.runtime.device)
        optimizer = build_optimizer(network.parameters(), self.config)
        average = None
        if self.config.ema_decay and isinstance(network, Generator):
            average = Average(network.model, self.config.ema_decay)
        wrapped = self.runtime.wrap(network)
        return Learner(name, wrapped, optimizer, self.runtime.gradient_scaler(), self.config.max_grad_norm, average)

    def _do_what_is_due(self, progress: "tqdm[NoReturn]") -> None:
        """Logs, validates and saves as the plan says for the update just done. Runs on every rank."""
        update = self.state.update
        ends_epoch = update % self.order.updates_per_epoch == 0
        plan = self.plan
        if ends_epoch or plan.logs_at(update) or plan.validates_at(update) or plan.saves_at(update):
            self.watch.settle(self.state)
        scalars = self._measure(progress) if plan.logs_at(update) else {}
        if scalars:
            self._name_stragglers()
        self.state.score = None
        with self.meter.paused():
            scores: list[ClipScore] = []
            speakers: tuple[SpeakerMel, ...] = ()
            if plan.validates_at(update):
                found, scores, speakers = self._validate()
                scalars |= found
                self._end_where_nothing_improves()
            if ends_epoch or update == self.plan.total_updates:
                self._close_epoch()
            self._record(scalars, scores, speakers)
            if self.plan.saves_at(update) or self._is_best_now:
                self._save()

    @property
    def _is_best_now(self) -> bool:
        return self.state.score is not None and self.state.best_update == self.state.update

    def _end_where_nothing_improves(self) -> None:
        """Makes this update the last where there was nothing better for long enough."""
        state = self.state
        if self.selection.is_over(state) and state.update < self.plan.total_updates:
            words = (
                f"nothing better than validation/{self.selection.metric} {state.best_score:.4f} of update "
                f"{state.best_update} in {state.validations_since_best} validations: the run ends at {state.update}"
            )
            if self.runtime.is_main:
                logger.info("%s", words)
            self.tracker.alert("Nothing improves", words, "INFO")
            self.plan = replace(self.plan, total_updates=state.update)

    def _close_epoch(self) -> None:
        """Says how the epoch's clips add up; raises if they do not. Runs on every rank."""
        words = self.watch.close_epoch(self.state.epoch, self.order.clips_left(self.state.update))
        if self.runtime.is_main:
            logger.info("%s", words)

    def _measure(self, progress: "tqdm[NoReturn]") -> dict[str, float]:
        scalars = self.meter.read()
        scalars |= {"data/trained": self.state.clips_trained, "data/rejected": self.state.clips_rejected}
        scalars |= {"data/masked": self.state.clips_masked, "data/nonfinite_updates": self.state.updates_nonfinite}
        scalars |= {f"data/rejected/{kind}": count for kind, count in self.watch.accounts.rejected_by_kind.items()}
        scalars["optim/learning_rate"] = self._learning_rate(self.state.epoch, self.state.update - 1)
        left_s = self.meter.left_s(self.plan.total_updates - self.state.update)
        scalars["time/left_h"] = left_s / 3600
        shown = {short: f"{scalars[name]:.{digits}f}" for short, name, digits in _SHOWN if name in scalars}
        shown["left"] = duration(left_s)
        progress.set_postfix(shown)
        if progress.disable and self.runtime.is_main:
            words = " ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("update %d/%d  %s", self.state.update, self.plan.total_updates, words)
        return scalars

    def _name_stragglers(self) -> None:
        """Tells of ranks that the others wait for, as far as the last measurement shows."""
        for finding in self.stragglers.heed(self.meter.shares) if self.runtime.is_main else []:
            logger.log(
                logging.WARNING if finding.is_slow else logging.INFO, "update %d  %s", self.state.update, finding.words
            )
            if finding.is_slow:
                self.tracker.alert("A rank is slow", finding.words)

    def _validate(self) -> tuple[dict[str, float], list[ClipScore], tuple[SpeakerMel, ...]]:
        """Judges the voice, averaged where it is to be, by the held-out clips. Runs on every rank."""
        learner = self.turns.generator
        with learner.averaged():
            found, scores, speakers = self._judge()
        if found and learner.average:
            raw = self.validation.run(self.generator, self.discriminator).scalars
            found["validation/mel_raw"] = raw["validation/mel"]
        # While the discriminators learn alone the voice stands still, and cannot become better.
        if found and not 0 < self.state.update <= self.plan.warmup_updates:
            for words in self.selection.heed(self.state, found):
                self.tracker.alert("Better than before", words, "INFO")
        if found and self.runtime.is_main:
            shown = {name.partition("/")[2]: value for name, value in found.items()}
            words = " ".join(f"{name} {value:.4f}" for name, value in shown.items() if "/" not in name)
            words += f"; the worst speaker: {worst(speakers)}" if speakers else ""
            logger.info("update %d  validation: %s", self.state.update, words)
        return found, scores, speakers

    def _judge(self) -> tuple[dict[str, float], list[ClipScore], tuple[SpeakerMel, ...]]:
        """Judges the weights as they are by the held-out clips. Runs on every rank."""
        judged = self.validation.run(self.generator, self.discriminator)
        found = judged.scalars
        if not found:
            return {}, [], ()
        if self.objective.adversarial:
            found["validation/mel_from_text"] = self.validation.mel_from_text(self.generator)
        found["validation/constant_frame_mel"] = self.validation.constant_frame_mel
        scores: list[ClipScore] = []
        if self.jury is not None:
            scores = self.validation.scores(self.generator, self.jury, self.config.validation_score_clips)
            found |= {f"validation/{name}": value for name, value in means(scores).items()}
        return found, scores, judged.speakers

    def _record(
        self, scalars: dict[str, float], scores: Sequence[ClipScore] = (), speakers: Sequence[SpeakerMel] = ()
    ) -> None:
        """Writes down what there is to say of the update just done."""
        if scalars and self.runtime.is_main:
            wanted = self.config.validation_samples if "validation/mel" in scalars else 0
            with self.turns.generator.averaged():
                samples = self.validation.samples(self.generator, wanted)
            spec = self.objective.spec
            self.tracker.record(self.state.update, self.state.epoch, scalars, samples, spec, scores, speakers)

    def _save(self) -> None:
        self.tracker.settle()
        self.state.accounts = self.watch.save()
        plan = {"total_updates": self.plan.total_updates, "warmup_updates": self.plan.warmup_updates}
        networks = (self.generator, self.discriminator, self.turns.learners)
        place = self.checkpoints.save(self.state, *networks, self.tokenizer, plan, self.meter.save())
        self._saved_update = self.state.update
        if self.runtime.is_main:
            logger.info("update %d  saved %s", self.state.update, place)
            self.tracker.keep_checkpoint(place, self._is_best_now)
            if self._is_best_now:
                best = {"metric": self.selection.metric, "value": self.state.score, "update": self.state.update}
                self.tracker.summarise({"best": {**best, "checkpoint": str(place)}})

    def _stop(self, own_reason: str) -> None:
        """Saves, and says who asked for it. Runs on every rank."""
        self.watch.settle(self.state)
        if self._saved_update != self.state.update:
            self._save()
        asked = enumerate(self.runtime.gather(own_reason))
        reasons = ", ".join(f"{reason} on rank {rank}" for rank, reason in asked if reason)
        words = f"stopped at update {self.state.update} ({reasons})"
        self.tracker.outcome = Outcome(words, self.state.update, self.interruption.exit_code())
        if self.runtime.is_main:
            discard(self.interruption.stop_file)
            logger.info("%s. Go on with --resume_from_checkpoint auto", words)

    def _compare_ranks(self) -> None:
        """Raises if the ranks' weights differ at the end: they took different steps. Runs on every rank."""
        digest = hashlib.sha256()
        for learner in self.turns.learners:
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
