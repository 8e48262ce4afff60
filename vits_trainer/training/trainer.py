"""The training loop: per update one step of the discriminator, then one of the generator."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from vits_trainer.config.train import TrainConfig
from vits_trainer.data.clip_accounting import ClipAccounting
from vits_trainer.data.dataloader import build_dataloader, group_by_update
from vits_trainer.data.dataset import Batch, ClipDataset
from vits_trainer.data.sampler import UpdateSampler
from vits_trainer.distributed.runtime import Runtime, is_out_of_memory
from vits_trainer.distributed.shutdown import ShutdownRequest
from vits_trainer.distributed.stragglers import RankInfo, StragglerDetector
from vits_trainer.distributed.watchdog import StallWatchdog
from vits_trainer.models.compile import as_compile_error, compile_networks
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.text.tokenizer import VoiceTokenizer
from vits_trainer.tracking.tracker import RunOutcome, Tracker
from vits_trainer.training import agreement
from vits_trainer.training.annealing import annealed
from vits_trainer.training.checkpoint import CheckpointManager, checkpoint_gib, write_networks
from vits_trainer.training.checkpoint_record import TrainState
from vits_trainer.training.early_stopping import BestCheckpointTracker
from vits_trainer.training.graphed_step import CudaGraphs, GraphedTrainStep
from vits_trainer.training.log_lines import (
    ProgressBar,
    format_duration,
    losses_and_speed,
    progress_bar,
    validation_line,
)
from vits_trainer.training.meter import TrainingMetrics
from vits_trainer.training.nonfinite_guard import LocalReports, NonFiniteGuard, StateChange
from vits_trainer.training.objective import LossDenominators, Objective
from vits_trainer.training.optim import Ema, NetworkOptimizer, build_optimizer, learning_rate_at
from vits_trainer.training.plan import TrainingPlan
from vits_trainer.training.train_step import GanTrainStep, out_of_memory_error
from vits_trainer.training.validation import Validation, ValidationResult
from vits_trainer.utils.errors import (
    NonFiniteLossError,
    TooManyRejectedError,
    UnreadableShardError,
    is_disk_full,
)
from vits_trainer.utils.files import discard

logger = logging.getLogger(__name__)

_NO_END = 2**62
"""Last update of a run whose length follows from its speed."""


class _Agreement(NamedTuple):
    """What all ranks know before an update."""

    denominators: LossDenominators
    any_reports: bool
    """Whether any rank has something to report."""
    stops: bool
    """Whether the run stops before the update."""
    own_reason: str
    """Why, if this rank was asked to stop."""


class Trainer:
    """The training loop: networks, data, schedules, logging and checkpoints. Building it runs on every rank."""

    def __init__(
        self,
        config: TrainConfig,
        plan: TrainingPlan,
        runtime: Runtime,
        objective: Objective,
        generator: Generator,
        discriminator: Discriminator | None,
        tokenizer: VoiceTokenizer,
        sampler: UpdateSampler,
        dataset: ClipDataset,
        accounting: ClipAccounting,
        validation: Validation,
        checkpoints: CheckpointManager,
        tracker: Tracker,
        shutdown: ShutdownRequest,
    ) -> None:
        self.config = config
        self.plan = plan
        self.runtime = runtime
        # Networks and what they are trained by
        self.objective = objective
        self.generator = generator
        self.discriminator = discriminator
        self.tokenizer = tokenizer
        generator.gradient_checkpointing = config.gradient_checkpointing
        if config.compile:
            compile_networks(generator, discriminator)
        d_optimizer = None if discriminator is None else self._network_optimizer("discriminator", discriminator)
        g_optimizer = self._network_optimizer("generator", generator)
        self.train_step = GanTrainStep(runtime, objective, g_optimizer, discriminator, d_optimizer, config.compile)
        self._run_step = GraphedTrainStep(self.train_step, CudaGraphs()) if config.cuda_graphs else self.train_step
        # Data
        self.sampler = sampler
        self.dataset = dataset
        self.validation = validation
        # Records
        self.checkpoints = checkpoints
        self.tracker = tracker
        self.shutdown = shutdown
        self.metrics = TrainingMetrics(runtime, self.train_step.compute_timer)
        self.stragglers = StragglerDetector(runtime.all_gather_object(RankInfo.of(runtime)))
        self.guard = NonFiniteGuard(config, runtime, accounting, tracker, self._write_networks)
        self.best = BestCheckpointTracker(config.best_metric, config.patience)
        # Progress
        self.state = TrainState()
        self._saved_update = 0

    def fit(self) -> bool:
        """Trains up to the plan's last update. Runs on every rank.

        Returns:
            False if it was asked to stop before; the updates done are saved then.

        Raises:
            NothingTrainedError: no update of the run reached the weights.
        """
        if self.state.update >= self.plan.total_updates:
            last, done = self.plan.total_updates, self.state.update
            logger.info("Nothing left to train: the run ends at update %d, and %d are done.", last, done)
        self.generator.train()
        last_update = _NO_END if self.plan.target_hours else self.plan.total_updates
        specs = self.sampler.after(self.state.update, last_update, self.runtime.process_index)
        watchdog = StallWatchdog(self.config.rank_timeout_s, lambda message: self.tracker.alert("Stalled", message))
        bar = progress_bar(self.plan.total_updates, self.state.update, self.runtime.is_main_process)
        with logging_redirect_tqdm(), bar as progress, self._save_on_fatal_error(), watchdog:
            # Only now: workers that a signal reaches while they start have the handlers of this process.
            pin = self.runtime.device.type == "cuda"
            updates = group_by_update(build_dataloader(self.dataset, specs, self.config.data_workers, pin))
            own_reason = self.shutdown.reason_to_stop(needs_s=0)
            if any(self.runtime.all_gather_object(own_reason)):  # such as a signal during the dry run
                self._stop(own_reason)
                return False
            if self.plan.validates_before(self.state.update):
                self._log({}, self._validate())
            for update in self.metrics.time_data_wait(updates):
                reports = self.guard.collect(update)
                agreed = self._sync_before_step(update, reports)
                if agreed.stops:
                    self._stop(agreed.own_reason)
                    return False
                self._exchange_reports(reports, agreed.any_reports, update[0].spec.epoch)
                self.shutdown.has_progress = True
                if agreed.denominators.clips:
                    with self.train_step.compute_timer.measuring():
                        self.step(update, agreed.denominators)
                self.state.update += 1
                self.state.epoch = update[0].spec.epoch
                progress.update()
                self._correct_plan()
                self._run_periodic_actions(progress)
                watchdog.reset()
                if self.state.update == self.plan.total_updates:  # early stopping shortens the plan
                    break
        agreement.require_same_weights((optimizer.network for optimizer in self.train_step.optimizers), self.runtime)
        self.state.require_trained()
        return True

    def step(self, update: Sequence[Batch], denominators: LossDenominators) -> None:
        """One step of the discriminator, then one of the generator. Runs on every rank.

        Args:
            update: this rank's micro-batches.
            denominators: of the losses, over all ranks.

        Raises:
            OutOfMemoryError: gives the clips' lengths and the flags that help.
        """
        self.runtime.reseed(self.config.seed, self.state.update)
        discriminator_only = self.state.update < self.plan.discriminator_warmup_updates
        learning_rate = self._learning_rate(update[0].spec.epoch, self.state.update)
        totals: dict[str, Tensor] = {}
        by_batch = []
        with annealed(self.config, self.state.update, self.objective, self.generator):
            for batch in update:
                is_last = batch is update[-1]
                rate = learning_rate if is_last else None
                shares = self._train_on_batch(batch, denominators, discriminator_only, is_last, rate)
                totals |= {name: totals[name] + share if name in totals else share for name, share in shares.items()}
                by_batch.append(shares)
        norms = [value for name, value in totals.items() if name.startswith("grad_norm/")]
        clips = int(denominators.clips)
        self.metrics.add(totals, update, denominators.clips, reached=torch.isfinite(torch.stack(norms)).all())
        self.guard.add(self.state.update + 1, clips, update, by_batch)
        self.state.clips_trained += clips

    def resume(self, checkpoint_dir: Path) -> None:
        """Restores networks, optimizers, state and accounting from a checkpoint. Runs on every rank."""
        networks = (self.generator, self.discriminator, self.train_step.optimizers)
        self.state, means_by_rank = self.checkpoints.restore(checkpoint_dir, *networks)
        self.metrics.restore(means_by_rank)
        begins_epoch = self.state.update % self.sampler.updates_per_epoch == 0
        self.guard.accounting.restore(self.state.accounts, self.runtime.is_main_process, begins_epoch)
        self._saved_update = self.state.update

    def drop_unreadable_validation_clips(self) -> None:
        """Rejects validation clips that cannot be used, before anything is validated. Runs on every rank.

        Raises:
            TooManyRejectedError: too many, or all of them.
        """
        state, incidents = self.state, self.validation.find_unreadable()
        self._apply(self.guard.reject_validation_clips(incidents, state.update, state.epoch, state.nonfinite_in_a_row))

    def dry_run(self) -> float:
        """Runs forward and backward passes that change no weights, and completes the plan. Runs on every rank.

        The largest batches run with gradients and moments in memory, as in an update: if they do not fit, the run ends
        now and not in its third hour. The time is that of a second pass over typical clips: the first one
        compiles kernels and allocates memory.

        Returns:
            Expected seconds per update.
        """
        self.generator.train()
        specs = self.sampler.dry_run_batches(self.runtime.process_index)
        *largest, typical = build_dataloader(self.dataset, specs, workers=0)
        self._time_pass_s(typical)
        for optimizer in self.train_step.optimizers:
            optimizer.rehearse_step()
        for batch in largest:
            self._time_pass_s(batch)
        took_s = self._time_pass_s(typical)
        if self.runtime.chooses_threads and not self.config.deterministic:
            took_s = self.runtime.choose_threads(lambda: self._time_pass_s(typical))
        for optimizer in self.train_step.optimizers:
            optimizer.optimizer.zero_grad(set_to_none=True)
        seconds_per_update = float(max(self.runtime.all_gather_object(took_s))) * self.sampler.accumulation
        self.plan = self.plan.with_speed(seconds_per_update)
        return seconds_per_update

    # Before an update

    def _sync_before_step(self, update: Sequence[Batch], reports: LocalReports) -> _Agreement:
        """Sums over the ranks what they must agree on, in one collective on the host. Runs on every rank."""
        counts = [self.objective.denominators(batch) for batch in update]
        # The last save's time, or at first that of a slow disk.
        saving_s = self.checkpoints.last_save_s or 5 + 20 * checkpoint_gib(self.train_step.optimizers)
        reason = self.shutdown.reason_to_stop(needs_s=2 * (self.metrics.slowest_update_s + saving_s))
        own = [*(sum(column) for column in zip(*counts, strict=True)), reports.total, bool(reason)]
        *totals, any_reports, stops = self.runtime.all_reduce_sum(torch.tensor(own, dtype=torch.float64)).tolist()
        return _Agreement(LossDenominators(*totals), any_reports > 0, stops > 0, reason)

    def _exchange_reports(self, own: LocalReports, any_rank: bool, epoch: int) -> None:
        """Counts the reports of all ranks. Runs on every rank."""
        state = self.state
        self._apply(self.guard.exchange(own, any_rank, state.update + 1, epoch, state.nonfinite_in_a_row))

    def _apply(self, change: StateChange) -> None:
        """Adds reported counts to the state; raises the error that ends the run, if any."""
        state = self.state
        state.nonfinite_in_a_row = change.nonfinite_in_a_row
        state.updates_nonfinite += change.updates_nonfinite
        state.clips_trained -= change.clips_masked
        state.clips_masked += change.clips_masked
        state.clips_rejected += change.clips_rejected
        if change.error is not None:
            raise change.error

    # The update

    def _train_on_batch(
        self,
        batch: Batch,
        denominators: LossDenominators,
        discriminator_only: bool,
        sync_gradients: bool,
        learning_rate: float | None,
    ) -> dict[str, Tensor]:
        """Calls :class:`GanTrainStep`; explains out-of-memory errors and failed collectives. Runs on every rank."""
        try:
            return self._run_step(batch, denominators, discriminator_only, sync_gradients, learning_rate)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise out_of_memory_error(batch, self.objective.spec, self.runtime.device) from error
            compiler = as_compile_error(error) if self.config.compile else None
            explained = self.runtime.explain_collective_error(error) or compiler
            if explained is None:
                raise
            raise explained from error

    def _learning_rate(self, epoch: int, update: int) -> float:
        return learning_rate_at(self.config, epoch, update, self.plan.total_updates)

    def _network_optimizer(self, name: str, network: Generator | Discriminator) -> NetworkOptimizer:
        network.to(self.runtime.device)
        is_generator = isinstance(network, Generator)
        betas = self.config.adam_betas if is_generator else self.config.discriminator_betas
        ema = Ema(self.generator.model, self.config.ema_decay) if self.config.ema_decay and is_generator else None
        return NetworkOptimizer(
            name,
            self.runtime.prepare_model(network),
            build_optimizer(network.parameters(), self.config, betas),
            self.runtime.accelerator,
            self.runtime.gradient_scaler(),
            self.config.max_grad_norm,
            ema,
            1.0 if is_generator else self.config.discriminator_learning_rate_factor,
        )

    def _time_pass_s(self, batch: Batch) -> float:
        """Seconds of a forward and backward pass that changes no weights. Runs on every rank."""
        began_s = time.perf_counter()
        denominators = self._sync_before_step([batch], LocalReports((), batch.rejections)).denominators
        self._train_on_batch(batch, denominators, discriminator_only=False, sync_gradients=True, learning_rate=None)
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)
        return time.perf_counter() - began_s

    # After an update

    def _run_periodic_actions(self, progress: ProgressBar) -> None:
        """Logs, validates and saves as the plan says for the update just done. Runs on every rank."""
        update, plan = self.state.update, self.plan
        ends_epoch = update % self.sampler.updates_per_epoch == 0
        if ends_epoch or plan.logs_at(update) or plan.validates_at(update) or plan.saves_at(update):
            self._flush_guard()
        scalars = self._collect_metrics(progress) if plan.logs_at(update) else {}
        if scalars:
            self._report_stragglers()
        self.state.selection = replace(self.state.selection, score=None)
        with self.metrics.excluded_from_throughput():
            validated = ValidationResult({})
            if plan.validates_at(update):
                validated = self._validate()
                self._check_early_stopping()
            if ends_epoch or update == self.plan.total_updates:
                left = self.sampler.clips_left(update)
                logger.info("%s", self.guard.close_epoch(self.state.epoch, left))
            self._log(scalars, validated)
            if self.plan.saves_at(update) or self._is_best_now:
                self._save()

    def _correct_plan(self) -> None:
        """Fits the epochs into ``--target_hours`` by the time of the first updates, once. Runs on every rank."""
        own_s = self.metrics.speed_of_first_updates_s
        if own_s is None or not self.plan.target_hours:
            return
        seconds_per_update = max(self.runtime.all_gather_object(own_s))
        self.plan = self.plan.corrected(seconds_per_update, self.state.update)
        total, hours = self.plan.total_updates, self.plan.target_hours
        logger.info("%.2f s/update: %d updates in total for --target_hours %g", seconds_per_update, total, hours)

    def _flush_guard(self) -> None:
        """Counts the reports of all updates done. Runs on every rank. A CPU-GPU sync point."""
        state = self.state
        self._apply(self.guard.flush(state.update, state.epoch, state.nonfinite_in_a_row))

    def _collect_metrics(self, progress: ProgressBar) -> dict[str, float]:
        """Means since the last log line, which it prints. Runs on every rank. A CPU-GPU sync point."""
        scalars = self.metrics.read()
        state = self.state
        scalars |= {"data/trained": state.clips_trained, "data/rejected": state.clips_rejected}
        scalars |= {"data/masked": state.clips_masked, "data/nonfinite_updates": state.updates_nonfinite}
        by_kind = self.guard.accounting.rejected_by_kind
        scalars |= {f"data/rejected/{kind}": count for kind, count in by_kind.items()}
        scalars["optim/learning_rate"] = self._learning_rate(state.epoch, state.update - 1)
        eta_s = self.metrics.eta_s(self.plan.total_updates - state.update)
        scalars["time/eta_h"] = eta_s / 3600
        eta = f"{format_duration(eta_s)} left"
        logger.info("update %d/%d  %s  %s", state.update, self.plan.total_updates, losses_and_speed(scalars), eta)
        progress.set_postfix_str(eta)
        return scalars

    def _report_stragglers(self) -> None:
        """Logs ranks that the others wait for. Runs on the main rank."""
        for notice in self.stragglers.update(self.metrics.rank_timings) if self.runtime.is_main_process else []:
            level = logging.WARNING if notice.is_slow else logging.INFO
            logger.log(level, "update %d  %s", self.state.update, notice.message)
            if notice.is_slow:
                self.tracker.alert("A rank is slow", notice.message)

    def _log(self, scalars: dict[str, float], validated: ValidationResult) -> None:
        """Sends the metrics of the update just done to the tracker, with samples if it was validated."""
        scalars = scalars | validated.scalars
        if not scalars or not self.runtime.is_main_process:
            return
        wanted = self.config.validation_samples if validated.scalars else 0
        with self.train_step.generator_optimizer.ema_weights():
            samples = self.validation.samples(self.generator, wanted)
        spec = self.objective.spec
        update, epoch = self.state.update, self.state.epoch
        self.tracker.log(update, epoch, scalars, samples, spec, validated.scores, validated.speakers)

    # Validation

    def _validate(self) -> ValidationResult:
        """Validates the voice as it would be exported, and selects the best update. Runs on every rank."""
        optimizer = self.train_step.generator_optimizer
        with optimizer.ema_weights():
            result = self.validation.measure(self.generator, self.discriminator)
        scalars = result.scalars
        if not scalars:
            return result
        if optimizer.ema:
            raw = self.validation.run(self.generator, self.discriminator).scalars
            scalars["validation/mel_raw"] = raw["validation/mel"]
        # The voice does not change during the discriminator's warm-up, and cannot improve.
        if not 0 < self.state.update <= self.plan.discriminator_warmup_updates:
            state, by_clip = self.state, result.by_clip
            state.selection, improvement = self.best.update(state.update, state.selection, scalars, by_clip)
            if improvement:
                self.tracker.alert("Better than before", improvement, "INFO")
        line = validation_line(scalars, result.speakers)
        logger.info("update %d  validation: %s", self.state.update, line)
        return result

    @property
    def _is_best_now(self) -> bool:
        return self.state.selection.is_best(self.state.update)

    def _check_early_stopping(self) -> None:
        """Makes this update the last one if nothing has improved for ``patience`` validations."""
        update = self.state.update
        message = self.best.reason_to_stop(update, self.state.selection)
        if message and update < self.plan.total_updates:
            logger.info("%s", message)
            self.tracker.alert("Early stopping", message, "INFO")
            self.plan = replace(self.plan, total_updates=update)

    # Saving and ending

    def _save(self, flush: bool = True) -> None:
        """Writes a checkpoint; ``flush`` writes the metrics before it to disk. Runs on every rank."""
        if flush:
            self.tracker.flush()
        self.state.accounts = self.guard.save()
        plan = {
            "total_updates": self.plan.total_updates,
            "discriminator_warmup_updates": self.plan.discriminator_warmup_updates,
        }
        networks = (self.generator, self.discriminator, self.train_step.optimizers)
        checkpoint_dir = self.checkpoints.save(self.state, *networks, self.tokenizer, plan, self.metrics.save())
        self._saved_update = self.state.update
        logger.info("update %d  saved %s", self.state.update, checkpoint_dir)
        if not self.runtime.is_main_process:
            return
        self.tracker.log_checkpoint_artifact(checkpoint_dir, self._is_best_now)
        if self._is_best_now:
            best = {"metric": self.best.metric, "value": self.state.selection.score, "update": self.state.update}
            self.tracker.update_summary({"best": {**best, "checkpoint": str(checkpoint_dir)}})

    def _write_networks(self, folder: Path) -> None:
        write_networks(folder, self.generator, self.discriminator, self.tokenizer, self.config)

    @contextmanager
    def _save_on_fatal_error(self) -> Iterator[None]:
        """Saves before errors that all ranks raise together with good weights."""
        try:
            yield
        except (NonFiniteLossError, TooManyRejectedError, UnreadableShardError):
            if self._saved_update < self.state.update:
                self._save()
            raise
        except OSError as error:
            # Of the run's folder, as checkpoints raise SavingError. Other ranks would have to save, too.
            if is_disk_full(error) and self.runtime.num_processes == 1 and self._saved_update < self.state.update:
                self._save(flush=False)
            raise

    def _stop(self, own_reason: str) -> None:
        """Saves, and logs who asked for the stop. Runs on every rank."""
        self._flush_guard()
        if self._saved_update != self.state.update:
            self._save()
        by_rank = enumerate(self.runtime.all_gather_object(own_reason))
        reasons = ", ".join(f"{reason} on rank {rank}" for rank, reason in by_rank if reason)
        status = f"stopped at update {self.state.update} ({reasons})"
        self.tracker.outcome = RunOutcome(status, self.state.update, self.shutdown.exit_code())
        if self.runtime.is_main_process:
            discard(self.shutdown.stop_file)
        logger.info("%s. Resume with --resume_from_checkpoint latest", status)
