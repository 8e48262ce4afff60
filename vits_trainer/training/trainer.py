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
from vits_trainer.data.clip_accounting import ClipAccounting
from vits_trainer.data.dataloader import build_dataloader, group_by_update
from vits_trainer.data.dataset import Batch, ClipDataset
from vits_trainer.data.sampler import BucketBatchSampler
from vits_trainer.data.streaming_sampler import StreamingBatchSampler
from vits_trainer.distributed.runtime import Runtime, is_out_of_memory
from vits_trainer.distributed.shutdown import ShutdownRequest
from vits_trainer.distributed.stragglers import RankInfo, StragglerDetector
from vits_trainer.distributed.watchdog import StallWatchdog
from vits_trainer.evaluation.speakers import SpeakerMel, worst
from vits_trainer.evaluation.speech_metrics import ClipScore, SpeechMetrics, means
from vits_trainer.models.compile import as_compile_error, compile_fixed_shapes
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.tracking.tracker import RunOutcome, Tracker
from vits_trainer.training.checkpoint import CheckpointManager, TrainState, write_networks
from vits_trainer.training.early_stopping import BestCheckpointTracker
from vits_trainer.training.meter import TrainingMetrics, format_duration
from vits_trainer.training.nonfinite_guard import NonFiniteGuard
from vits_trainer.training.objective import LossDenominators, Objective
from vits_trainer.training.optim import Ema, NetworkOptimizer, build_optimizer, learning_rate_at
from vits_trainer.training.plan import TrainingPlan
from vits_trainer.training.train_step import GanTrainStep
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

    normalisers: LossDenominators
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
        plan: TrainingPlan,
        runtime: Runtime,
        objective: Objective,
        generator: Generator,
        discriminator: Discriminator | None,
        tokenizer: VitsTokenizer,
        order: BucketBatchSampler | StreamingBatchSampler,
        reader: ClipDataset,
        accounts: ClipAccounting,
        validation: Validation,
        checkpoints: CheckpointManager,
        tracker: Tracker,
        shutdown: ShutdownRequest,
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
        self.shutdown = shutdown
        generator.gradient_checkpointing = config.gradient_checkpointing
        if config.compile:
            compile_fixed_shapes(generator, discriminator)
        judge = None if discriminator is None else self._learner("discriminator", discriminator)
        learner = self._learner("generator", generator)
        self.train_step = GanTrainStep(runtime, objective, learner, discriminator, judge, config.compile)
        # Where it stands
        self.state = TrainState()
        self.meter = TrainingMetrics(runtime, self.train_step.compute_timer)
        self.stragglers = StragglerDetector(runtime.all_gather_object(RankInfo.of(runtime)))
        self.guard = NonFiniteGuard(config, runtime, accounts, tracker, self._keep_networks)
        self.selection = BestCheckpointTracker(config.best_metric, config.patience)
        self.speech_metrics = (
            SpeechMetrics(config.scores, objective.spec.sampling_rate, config.asr) if config.scores else None
        )
        self._saved_update = 0

    @property
    def checkpoint_gib(self) -> float:
        """Size of one checkpoint: the weights, of each trained one AdamW's two moments, and its average; float32."""
        counted = 0
        for learner in self.train_step.learners:
            moments_and_average = 3 if learner.ema else 2
            for p in learner.network.parameters():
                counted += p.numel() * (1 + moments_and_average * p.requires_grad)
        return counted * 4 / 2**30

    def resume(self, checkpoint_dir: Path) -> None:
        """Goes back to the checkpoint at ``checkpoint_dir``. Runs on every rank."""
        networks = (self.generator, self.discriminator, self.train_step.learners)
        self.state, losses = self.checkpoints.restore(checkpoint_dir, *networks)
        self.meter.restore(losses)
        begins_epoch = self.state.update % self.order.updates_per_epoch == 0
        self.guard.accounts.restore(self.state.accounts, self.runtime.is_main_process, begins_epoch)
        self._saved_update = self.state.update

    def drop_unreadable_validation_clips(self) -> None:
        """Leaves out the held-out clips that cannot be used, before anything is judged by them. Runs on every rank.

        Raises:
            TooManyRejectedError: too many, or all of them.
        """
        self.guard.reject_validation_clips(self.validation.find_unreadable(), self.state)

    def fit(self) -> bool:
        """Trains up to the plan's last update. Runs on every rank.

        Returns:
            False if it was asked to stop before; what was done is saved then.

        Raises:
            NothingTrainedError: no update of the run reached the weights.
        """
        if self.state.update >= self.plan.total_updates and self.runtime.is_main_process:
            logger.info(
                "Nothing is left to train: the run ends at update %d, and %d are done.",
                self.plan.total_updates,
                self.state.update,
            )
        self.generator.train()
        places = self.order.after(self.state.update, self.plan.total_updates, self.runtime.rank)
        alarm = StallWatchdog(self.config.rank_timeout_s, lambda words: self.tracker.alert("Stalled", words))
        with logging_redirect_tqdm(), self._progress() as progress, self._save_on_fatal_error(), alarm:
            # Not before: workers that a signal reaches while they start have what they inherited from this process.
            updates = group_by_update(build_dataloader(self.reader, places, self.config.data_workers))
            if self.plan.validates_before(self.state.update):
                self._record(*self._validate())
            for update in self.meter.time_data_wait(updates):
                agreed = self._sync_before_step(update)
                if agreed.stops:
                    self._stop(agreed.own_reason)
                    return False
                self.guard.handle_reports(update, self.state, agreed.has_incidents)
                if agreed.normalisers.clips:
                    with self.train_step.compute_timer.measuring():
                        self.step(update, agreed.normalisers)
                self.state.update += 1
                self.state.epoch = update[0].spec.epoch
                progress.update()
                self._run_periodic_actions(progress)
                alarm.reset()
                if self.state.update == self.plan.total_updates:  # sooner than planned, where patience ends it
                    break
        self._assert_ranks_in_sync()
        self.guard.require_trained(self.state)
        return True

    def apply_ema(self) -> None:
        """Gives the generator its averaged weights, where it keeps any: the voice that the run is for."""
        average = self.train_step.generator.ema
        if average is not None:
            average.copy_to_network()

    def dry_run(self) -> float:
        """Seconds that an update will take, by forward and backward passes that change nothing. Runs on every rank.

        The longest clips go first, so that what does not fit into memory is known now, not in the run's third hour.
        """
        took_s = 0.0
        places = self.order.dry_run_batches(self.runtime.rank)
        # The first time round, compiling takes minutes that no update after it does.
        for batch in build_dataloader(self.reader, places * 2 if self.config.compile else places, workers=0):
            took_s = self._pass_s(batch)
            typical = batch
        if self.runtime.chooses_threads and not self.config.deterministic:
            took_s = self._choose_threads(lambda: self._pass_s(typical))
        for learner in self.train_step.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        return float(max(self.runtime.all_gather_object(took_s))) * self.order.accumulation

    def _pass_s(self, batch: Batch) -> float:
        """Seconds of a forward and backward pass that changes no weights. Runs on every rank."""
        began = time.perf_counter()
        self._train_on_batch(
            batch,
            self._sync_before_step([batch]).normalisers,
            discriminator_only=False,
            sync_gradients=True,
            learning_rate=None,
        )
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

    def step(self, update: Sequence[Batch], normalisers: LossDenominators) -> None:
        """One step of the discriminators, then one of the generator. Runs on every rank.

        Args:
            update: this rank's micro-batches of it.
            normalisers: what its losses are divided by, on all ranks.

        Raises:
            OutOfMemoryError: it does not fit; names its clips' lengths and the flags that help.
        """
        self.runtime.reseed(self.config.seed, self.state.update)
        alone = self.state.update < self.plan.discriminator_warmup_updates
        rate = self._learning_rate(update[0].spec.epoch, self.state.update)
        shares: dict[str, Tensor] = {}
        found = []
        for batch in update:
            closes = batch is update[-1]
            found.append(self._train_on_batch(batch, normalisers, alone, closes, rate if closes else None))
            shares |= {name: shares[name] + value if name in shares else value for name, value in found[-1].items()}
        norms = [value for name, value in shares.items() if name.startswith("grad_norm/")]
        self.meter.add(shares, update, normalisers.clips, reached=torch.isfinite(torch.stack(norms)).all())
        self.guard.add(self.state.update + 1, int(normalisers.clips), update, found)
        self.state.clips_trained += int(normalisers.clips)

    def _learning_rate(self, epoch: int, update: int) -> float:
        return learning_rate_at(self.config, epoch, update, self.plan.total_updates)

    def _sync_before_step(self, update: Sequence[Batch]) -> Agreement:
        """What all ranks must know before an update, in one exchange on the host's side. Runs on every rank."""
        counts = [self.objective.denominators(batch) for batch in update]
        # Saving takes as long as it did before, or at first as on a slow disk.
        saving_s = self.checkpoints.last_save_s or 5 + 20 * self.checkpoint_gib
        reason = self.shutdown.reason_to_stop(needs_s=2 * (self.meter.slowest_update_s + saving_s))
        own = [*(sum(column) for column in zip(*counts, strict=True)), self.guard.count_pending(update), bool(reason)]
        *totals, incidents, stopping = self.runtime.all_reduce_sum(torch.tensor(own, dtype=torch.float64)).tolist()
        return Agreement(LossDenominators(*totals), incidents > 0, stopping > 0, reason)

    @contextmanager
    def _save_on_fatal_error(self) -> Iterator[None]:
        """Bad clips or numbers end a run on all ranks alike, with good weights: these are not lost."""
        try:
            yield
        except (NonFiniteLossError, TooManyRejectedError, UnreadableShardError):
            if self._saved_update < self.state.update:
                self._save()
            raise

    def _keep_networks(self, folder: Path) -> None:
        write_networks(folder, self.generator, self.discriminator, self.tokenizer, self.config)

    def _train_on_batch(
        self,
        batch: Batch,
        normalisers: LossDenominators,
        discriminator_only: bool,
        sync_gradients: bool,
        learning_rate: float | None,
    ) -> dict[str, Tensor]:
        """Calls :class:`GanTrainStep`; explains out-of-memory errors and failed collectives. Runs on every rank."""
        try:
            return self.train_step(batch, normalisers, discriminator_only, sync_gradients, learning_rate)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                meaning = self.runtime.explain_collective_error(error) or (
                    as_compile_error(error) if self.config.compile else None
                )
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

    def _learner(self, name: str, network: Generator | Discriminator) -> NetworkOptimizer:
        network.to(self.runtime.device)
        optimizer = build_optimizer(network.parameters(), self.config)
        average = None
        if self.config.ema_decay and isinstance(network, Generator):
            average = Ema(network.model, self.config.ema_decay)
        wrapped = self.runtime.prepare_model(network)
        return NetworkOptimizer(
            name, wrapped, optimizer, self.runtime.gradient_scaler(), self.config.max_grad_norm, average
        )

    def _run_periodic_actions(self, progress: "tqdm[NoReturn]") -> None:
        """Logs, validates and saves as the plan says for the update just done. Runs on every rank."""
        update = self.state.update
        ends_epoch = update % self.order.updates_per_epoch == 0
        plan = self.plan
        if ends_epoch or plan.logs_at(update) or plan.validates_at(update) or plan.saves_at(update):
            self.guard.flush(self.state)
        scalars = self._collect_metrics(progress) if plan.logs_at(update) else {}
        if scalars:
            self._report_stragglers()
        self.state.score = None
        with self.meter.excluded_from_throughput():
            scores: list[ClipScore] = []
            speakers: tuple[SpeakerMel, ...] = ()
            if plan.validates_at(update):
                found, scores, speakers = self._validate()
                scalars |= found
                self._check_early_stopping()
            if ends_epoch or update == self.plan.total_updates:
                self._close_epoch()
            self._record(scalars, scores, speakers)
            if self.plan.saves_at(update) or self._is_best_now:
                self._save()

    @property
    def _is_best_now(self) -> bool:
        return self.state.score is not None and self.state.best_update == self.state.update

    def _check_early_stopping(self) -> None:
        """Makes this update the last where there was nothing better for long enough."""
        state = self.state
        if self.selection.should_stop(state) and state.update < self.plan.total_updates:
            words = (
                f"nothing better than validation/{self.selection.metric} {state.best_score:.4f} of update "
                f"{state.best_update} in {state.validations_since_best} validations: the run ends at {state.update}"
            )
            if self.runtime.is_main_process:
                logger.info("%s", words)
            self.tracker.alert("Nothing improves", words, "INFO")
            self.plan = replace(self.plan, total_updates=state.update)

    def _close_epoch(self) -> None:
        """Says how the epoch's clips add up; raises if they do not. Runs on every rank."""
        words = self.guard.close_epoch(self.state.epoch, self.order.clips_left(self.state.update))
        if self.runtime.is_main_process:
            logger.info("%s", words)

    def _collect_metrics(self, progress: "tqdm[NoReturn]") -> dict[str, float]:
        scalars = self.meter.read()
        scalars |= {"data/trained": self.state.clips_trained, "data/rejected": self.state.clips_rejected}
        scalars |= {"data/masked": self.state.clips_masked, "data/nonfinite_updates": self.state.updates_nonfinite}
        scalars |= {f"data/rejected/{kind}": count for kind, count in self.guard.accounts.rejected_by_kind.items()}
        scalars["optim/learning_rate"] = self._learning_rate(self.state.epoch, self.state.update - 1)
        left_s = self.meter.eta_s(self.plan.total_updates - self.state.update)
        scalars["time/eta_h"] = left_s / 3600
        shown = {short: f"{scalars[name]:.{digits}f}" for short, name, digits in _SHOWN if name in scalars}
        shown["left"] = format_duration(left_s)
        progress.set_postfix(shown)
        if progress.disable and self.runtime.is_main_process:
            words = " ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("update %d/%d  %s", self.state.update, self.plan.total_updates, words)
        return scalars

    def _report_stragglers(self) -> None:
        """Tells of ranks that the others wait for, as far as the last measurement shows."""
        for finding in self.stragglers.update(self.meter.shares) if self.runtime.is_main_process else []:
            logger.log(
                logging.WARNING if finding.is_slow else logging.INFO, "update %d  %s", self.state.update, finding.words
            )
            if finding.is_slow:
                self.tracker.alert("A rank is slow", finding.words)

    def _validate(self) -> tuple[dict[str, float], list[ClipScore], tuple[SpeakerMel, ...]]:
        """Judges the voice, averaged where it is to be, by the held-out clips. Runs on every rank."""
        learner = self.train_step.generator
        with learner.ema_weights():
            found, scores, speakers = self._speech_metrics()
        if found and learner.ema:
            raw = self.validation.run(self.generator, self.discriminator).scalars
            found["validation/mel_raw"] = raw["validation/mel"]
        # While the discriminators learn alone the voice stands still, and cannot become better.
        if found and not 0 < self.state.update <= self.plan.discriminator_warmup_updates:
            for words in self.selection.update(self.state, found):
                self.tracker.alert("Better than before", words, "INFO")
        if found and self.runtime.is_main_process:
            shown = {name.partition("/")[2]: value for name, value in found.items()}
            words = " ".join(f"{name} {value:.4f}" for name, value in shown.items() if "/" not in name)
            words += f"; the worst speaker: {worst(speakers)}" if speakers else ""
            logger.info("update %d  validation: %s", self.state.update, words)
        return found, scores, speakers

    def _speech_metrics(self) -> tuple[dict[str, float], list[ClipScore], tuple[SpeakerMel, ...]]:
        """Judges the weights as they are by the held-out clips. Runs on every rank."""
        judged = self.validation.run(self.generator, self.discriminator)
        found = judged.scalars
        if not found:
            return {}, [], ()
        if self.objective.adversarial:
            found["validation/mel_from_text"] = self.validation.mel_from_text(self.generator)
        found["validation/constant_frame_mel"] = self.validation.constant_frame_mel
        scores: list[ClipScore] = []
        if self.speech_metrics is not None:
            scores = self.validation.scores(self.generator, self.speech_metrics, self.config.validation_score_clips)
            found |= {f"validation/{name}": value for name, value in means(scores).items()}
        return found, scores, judged.speakers

    def _record(
        self, scalars: dict[str, float], scores: Sequence[ClipScore] = (), speakers: Sequence[SpeakerMel] = ()
    ) -> None:
        """Writes down what there is to say of the update just done."""
        if scalars and self.runtime.is_main_process:
            wanted = self.config.validation_samples if "validation/mel" in scalars else 0
            with self.train_step.generator.ema_weights():
                samples = self.validation.samples(self.generator, wanted)
            spec = self.objective.spec
            self.tracker.log(self.state.update, self.state.epoch, scalars, samples, spec, scores, speakers)

    def _save(self) -> None:
        self.tracker.flush()
        self.state.accounts = self.guard.save()
        plan = {"total_updates": self.plan.total_updates, "warmup_updates": self.plan.discriminator_warmup_updates}
        networks = (self.generator, self.discriminator, self.train_step.learners)
        place = self.checkpoints.save(self.state, *networks, self.tokenizer, plan, self.meter.save())
        self._saved_update = self.state.update
        if self.runtime.is_main_process:
            logger.info("update %d  saved %s", self.state.update, place)
            self.tracker.log_checkpoint_artifact(place, self._is_best_now)
            if self._is_best_now:
                best = {"metric": self.selection.metric, "value": self.state.score, "update": self.state.update}
                self.tracker.update_summary({"best": {**best, "checkpoint": str(place)}})

    def _stop(self, own_reason: str) -> None:
        """Saves, and says who asked for it. Runs on every rank."""
        self.guard.flush(self.state)
        if self._saved_update != self.state.update:
            self._save()
        asked = enumerate(self.runtime.all_gather_object(own_reason))
        reasons = ", ".join(f"{reason} on rank {rank}" for rank, reason in asked if reason)
        words = f"stopped at update {self.state.update} ({reasons})"
        self.tracker.outcome = RunOutcome(words, self.state.update, self.shutdown.exit_code())
        if self.runtime.is_main_process:
            discard(self.shutdown.stop_file)
            logger.info("%s. Go on with --resume_from_checkpoint auto", words)

    def _assert_ranks_in_sync(self) -> None:
        """Raises if the ranks' weights differ at the end: they took different steps. Runs on every rank."""
        digest = hashlib.sha256()
        for learner in self.train_step.learners:
            for parameter in learner.network.parameters():
                digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        found = self.runtime.all_gather_object(digest.hexdigest())
        if len(set(found)) > 1:
            raise DivergedRanksError(f"The ranks ended with different weights ({found}): they took different steps.")
        if self.runtime.is_main_process:
            logger.info("weights of all %d rank(s): sha256 %s", len(found), found[0])

    def _progress(self) -> "tqdm[NoReturn]":
        return tqdm(
            total=self.plan.total_updates,
            initial=self.state.update,
            unit="update",
            disable=None if self.runtime.is_main_process else True,  # None: only where there is a terminal
            dynamic_ncols=True,
        )
