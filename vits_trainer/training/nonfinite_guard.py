"""Guard against NaN and Inf: counts masked updates and rejected clips, logs them, and ends a run that has too many.

The device masks an update with NaN or Inf losses or gradients (:meth:`NetworkOptimizer.step`). Its values are read back
a few updates later, when reading costs no wait. Per update the trainer calls, in this order: ``collect`` (local),
one sum over the ranks, ``exchange``, the step, ``add``.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from vits_trainer.config.train import TrainConfig
from vits_trainer.data.clip_accounting import ClipAccounting, Incident
from vits_trainer.data.dataset import Batch
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.tracking.tracker import Tracker
from vits_trainer.utils.errors import (
    NonFiniteLossError,
    TooManyRejectedError,
    UnreadableShardError,
    VitsTrainerError,
)

LAG_UPDATES = 2
"""Updates after which the host reads a result back."""
_MAX_KEPT = 3
"""Masked updates of a run that are kept for replay; each takes the size of both networks on disk."""
_SILENT_OVERFLOWS = 20
"""Halvings of fp16's gradient scale from 65536 to below 1: its overflows are not reported up to then."""


@dataclass
class StateChange:
    """Counts that reports change, the same on every rank. The trainer adds them to its state."""

    nonfinite_in_a_row: int
    """The new value, not a difference."""
    clips_masked: int = 0
    """Counted as trained before."""
    clips_rejected: int = 0
    updates_nonfinite: int = 0
    error: VitsTrainerError | None = None
    """Ends the run once the state is updated."""


class _Report(NamedTuple):
    """NaN or Inf in one update of one rank."""

    update: int
    losses: Mapping[str, float]
    """The NaN and Inf ones; empty if only the gradient is."""
    clips: tuple[str, ...]
    """Of the micro-batches with these losses; all of the update's if only the gradient is NaN or Inf."""
    file: str
    """Where the update's micro-batches are kept for replay; empty if they are not."""

    def incident(self) -> Incident:
        """Returns the record for rejected.jsonl."""
        values = ", ".join(f"{name} is {value}" for name, value in self.losses.items())
        replay = f"; replay with: vits-trainer check --replay {self.file}" if self.file else ""
        return Incident(
            clip=", ".join(self.clips) or "no clip",
            stage="update",
            kind="non-finite-loss" if self.losses else "non-finite-gradient",
            message=f"{values or 'losses are finite, the gradient is not'}; update {self.update} was masked{replay}",
        )


@dataclass(frozen=True)
class _PendingReadback:
    """One update whose values are being copied to the host."""

    update: int
    clips: int
    """On all ranks."""
    epoch: int
    batches: Sequence[Batch]
    names: Sequence[Sequence[str]]
    """Names of each micro-batch's values."""
    values: Tensor
    copied: torch.cuda.Event | None


@dataclass(frozen=True)
class _StepResult:
    """The same update, with its values on the host."""

    update: int
    clips: int
    epoch: int
    batches: Sequence[Batch]
    values: Sequence[Mapping[str, float]]
    """Per micro-batch: this rank's shares of the losses; with the last, of the gradient norms."""

    @property
    def is_finite(self) -> bool:
        """Whether all values of this rank are."""
        return all(isfinite(value) for values in self.values for value in values.values())

    @property
    def masked(self) -> bool:
        """Whether a network's step was masked: the same on every rank."""
        return any(not isfinite(value) for name, value in self.values[-1].items() if name.startswith("grad_norm/"))

    @property
    def nonfinite_losses(self) -> list[dict[str, float]]:
        """Per micro-batch, the losses that are NaN or Inf, without their weighted sums."""
        return [
            {
                name: value
                for name, value in values.items()
                if not isfinite(value) and not name.startswith("grad_norm/") and not name.endswith("/total")
            }
            for values in self.values
        ]


class LocalReports(NamedTuple):
    """What this rank has to report before an update."""

    results: Sequence[_StepResult]
    """Earlier updates that were read back."""
    rejections: Sequence[Incident]
    """Clips of the coming update that cannot be used."""

    @property
    def total(self) -> int:
        """Reports of this rank; if it is 0 on all ranks, nothing has to be exchanged."""
        return len(self.rejections) + sum(not result.is_finite for result in self.results)


class NonFiniteGuard:
    """Accounts for clips, reads results back, logs incidents, and ends a run that has too many of them."""

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        accounting: ClipAccounting,
        tracker: Tracker,
        save_networks: Callable[[Path], None],
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.accounting = accounting
        self.tracker = tracker
        self.save_networks = save_networks
        self._pending: deque[_PendingReadback] = deque()
        self._overflows_in_a_row = 0

    def add(self, update: int, clips: int, batches: Sequence[Batch], values: Sequence[Mapping[str, Tensor]]) -> None:
        """Queues the values of an update for reading. Does not wait for the device.

        Args:
            update: its number.
            clips: in it, on all ranks.
            batches: this rank's micro-batches, on the CPU.
            values: losses and gradient norms of each of them.
        """
        own = torch.stack([value.detach().float() for named in values for value in named.values()])
        on_host = torch.empty(own.shape, pin_memory=own.is_cuda)
        on_host.copy_(own, non_blocking=True)
        copied = torch.cuda.Event() if own.is_cuda else None  # type: ignore[no-untyped-call]
        if copied is not None:
            copied.record()
        names = [list(named) for named in values]
        self._pending.append(_PendingReadback(update, clips, batches[0].spec.epoch, batches, names, on_host, copied))
        self.accounting.count((clip for batch in batches for clip in batch.clip_ids), ())

    def collect(self, update: Sequence[Batch]) -> LocalReports:
        """Returns what this rank has to report before ``update``."""
        rejections = [rejection for batch in update for rejection in batch.rejections]
        return LocalReports(self._read_back(leave=LAG_UPDATES), rejections)

    def exchange(
        self, own: LocalReports, any_rank: bool, update: int, epoch: int, nonfinite_in_a_row: int
    ) -> StateChange:
        """Shares the reports of all ranks, logs them and counts them. Runs on every rank.

        Args:
            own: reports of this rank.
            any_rank: whether any rank has one.
            update: number of the coming update.
            epoch: of the coming update.
            nonfinite_in_a_row: consecutive NaN or Inf updates so far.
        """
        reports = [report for result in own.results if (report := self._report(result))]
        gathered = self.runtime.all_gather_object((list(own.rejections), reports)) if any_rank else []
        change = StateChange(nonfinite_in_a_row)
        for result in own.results:
            of_update = [report for _, theirs in gathered for report in theirs if report.update == result.update]
            self._count(result, of_update, change)
            if change.error is not None:
                return change
        # A clip may occur several times per epoch, even in one update: it is reported once.
        rejections = {incident.clip: incident for incidents, _ in gathered for incident in incidents}
        self._reject(list(rejections.values()), update, epoch, change)
        if change.error is None:  # otherwise they come again when the run is resumed
            self.accounting.count((), (rejection.clip for rejection in own.rejections))
        return change

    def flush(self, update: int, epoch: int, nonfinite_in_a_row: int) -> StateChange:
        """Reads back all pending updates and exchanges them. Runs on every rank. A CPU-GPU sync point."""
        own = LocalReports(self._read_back(leave=0), ())
        any_rank = self.runtime.all_reduce_sum(torch.tensor([own.total])).item() > 0
        return self.exchange(own, any_rank, update, epoch, nonfinite_in_a_row)

    def reject_validation_clips(
        self, incidents: Sequence[Incident], update: int, epoch: int, nonfinite_in_a_row: int
    ) -> StateChange:
        """Rejects validation clips, the same on every rank; known ones are not reported again."""
        change = StateChange(nonfinite_in_a_row)
        self._reject(incidents, update, epoch, change)
        return change

    def close_epoch(self, epoch: int, not_reached: int = 0) -> str:
        """Returns the sum of an epoch's clips as a log line. Runs on every rank.

        Raises:
            AccountingError: the clips do not add up.
            TooManyRejectedError: none was trained on.
        """
        return self.accounting.finish_epoch(epoch, self._totals(), not_reached)

    def save(self) -> dict[str, object]:
        """Returns the accounting of all ranks for a checkpoint. Runs on every rank."""
        return self.accounting.save(self._totals())

    def _totals(self) -> NDArray[np.int32]:
        totals: NDArray[np.int32] = self.runtime.all_reduce_sum(torch.from_numpy(self.accounting.counts())).numpy()
        return totals

    def _read_back(self, leave: int) -> list[_StepResult]:
        results = []
        while len(self._pending) > leave:
            pending = self._pending.popleft()
            if pending.copied is not None:
                pending.copied.synchronize()
            rest = iter(pending.values.tolist())
            values = [{name: next(rest) for name in names} for names in pending.names]
            results.append(_StepResult(pending.update, pending.clips, pending.epoch, pending.batches, values))
        return results

    def _reject(self, incidents: Sequence[Incident], update: int, epoch: int, change: StateChange) -> None:
        new = [incident for incident in incidents if not self.accounting.knows(incident.clip)]
        if not new:
            return
        self.tracker.incidents(update, epoch, new)
        try:
            self.accounting.reject(new)
        except (TooManyRejectedError, UnreadableShardError) as error:
            change.error = error
        else:
            change.clips_rejected += len(new)

    def _count(self, result: _StepResult, reports: Sequence[_Report], change: StateChange) -> None:
        """Counts one update, the same on every rank, and logs it."""
        self._reclassify_as_masked(result, change)
        if not reports:
            change.nonfinite_in_a_row = change.nonfinite_in_a_row if result.masked else 0
            return
        if self.runtime.is_main_process and reports[0].file:
            self.save_networks(self._replay_folder(result.update))
        change.updates_nonfinite += 1
        change.nonfinite_in_a_row += 1
        # If a loss is the cause, ranks that only see it through the averaged gradient report nothing.
        causes = [report for report in reports if report.losses] or reports
        incidents = [report.incident() for report in causes]
        self.tracker.incidents(result.update, result.epoch, incidents)
        if change.nonfinite_in_a_row > self.config.max_nonfinite_updates:
            for later in self._read_back(leave=0):
                self._reclassify_as_masked(later, change)
            change.error = NonFiniteLossError(
                f"{change.nonfinite_in_a_row} consecutive updates had NaN or Inf losses or gradients, more than "
                f"--max_nonfinite_updates {self.config.max_nonfinite_updates}; the last: {incidents[0]}. The weights "
                "are those before these updates. Check these clips; or lower --learning_rate, set --max_grad_norm 10, "
                "or use --precision fp32."
            )

    def _reclassify_as_masked(self, result: _StepResult, change: StateChange) -> None:
        if result.masked:
            change.clips_masked += result.clips
            self.accounting.mask(clip for batch in result.batches for clip in batch.clip_ids)

    def _report(self, result: _StepResult) -> _Report | None:
        """Returns this rank's report of an update; None if all is finite, or fp16's gradient scale was too large."""
        if result.is_finite:
            self._overflows_in_a_row = 0
            return None
        losses = {name: value for named in result.nonfinite_losses for name, value in named.items()}
        if not losses and self.runtime.precision == "fp16":
            self._overflows_in_a_row += 1
            if self._overflows_in_a_row <= _SILENT_OVERFLOWS:
                return None
        by_batch = zip(result.batches, result.nonfinite_losses, strict=True)
        clips = tuple(clip for batch, named in by_batch if named or not losses for clip in batch.clip_ids)
        file = self._replay_folder(result.update) / f"rank{self.runtime.process_index}.safetensors"
        others = [folder for folder in file.parent.parent.glob("update-*") if folder != file.parent]
        if len(others) >= _MAX_KEPT:
            return _Report(result.update, losses, clips, "")
        # All micro-batches, as each draws its random numbers after those before it.
        write_batches(file, result.batches, result.update, self.runtime.process_index, self.config.seed)
        return _Report(result.update, losses, clips, str(file))

    def _replay_folder(self, update: int) -> Path:
        return self.tracker.run_dir / "nonfinite" / f"update-{update:06}"


_TENSORS = ("tokens", "token_lengths", "waveform", "frame_lengths", "speaker_ids")


def write_batches(file: Path, batches: Sequence[Batch], update: int, rank: int, seed: int) -> None:
    """Writes one rank's micro-batches of an update, and what its random numbers follow from."""
    tensors = {
        f"{number}/{name}": tensor.contiguous()
        for number, batch in enumerate(batches)
        for name in _TENSORS
        if (tensor := getattr(batch, name)) is not None
    }
    record = {"update": update, "rank": rank, "seed": seed, "clips": [batch.clip_ids for batch in batches]}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"record": json.dumps(record)})
