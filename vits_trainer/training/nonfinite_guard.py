"""Sees to it that nothing fails in silence: updates that came to no finite number, and clips that cannot be used.

An update whose losses or gradients are no finite numbers is masked on the device (:meth:`Learner.update`). What it came
to is read a few updates later, when that costs no waiting, and only then told.
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
from vits_trainer.training.checkpoint import TrainState
from vits_trainer.utils.errors import NonFiniteLossError, NothingTrainedError

LAG_UPDATES = 2
"""So long the host leaves the device's verdict unread."""
_KEPT = 3
"""As many masked updates of a run are kept to be replayed; each takes the size of both networks."""
_SCALINGS = 20
"""Halvings of fp16's gradient scale from 65536 to below 1: its overflows are worth no word up to then."""


class _Report(NamedTuple):
    """What a rank has to say of one of its updates."""

    update: int
    terms: Mapping[str, float]
    """Losses that are no finite numbers."""
    clips: tuple[str, ...]
    """Of the micro-batches with these losses; all of the update's if only the gradient is none."""
    file: str
    """Where the update's micro-batches are kept; nowhere if empty."""

    def incident(self) -> Incident:
        """For the record."""
        found = ", ".join(f"{name} is {value}" for name, value in self.terms.items())
        kept = f"; look closer with: vits-trainer check --replay {self.file}" if self.file else ""
        return Incident(
            clip=", ".join(self.clips) or "no clip",
            stage="update",
            kind="non-finite-loss" if self.terms else "non-finite-gradient",
            message=f"{found or 'the losses are finite, their gradient is not'}; update {self.update} was masked{kept}",
        )


@dataclass(frozen=True)
class _PendingReadback:
    """One update whose values are on their way to the host."""

    update: int
    clips: int
    """On all ranks."""
    batches: Sequence[Batch]
    names: Sequence[Sequence[str]]
    """Of each micro-batch's values."""
    values: Tensor
    arrived: torch.cuda.Event | None


@dataclass(frozen=True)
class _StepResult:
    """The same, arrived."""

    update: int
    clips: int
    batches: Sequence[Batch]
    values: Sequence[Mapping[str, float]]
    """Of each micro-batch: this rank's shares of the losses; with the last, of the gradients' norms."""

    @property
    def is_finite(self) -> bool:
        """Whether all of this rank's values are."""
        return all(isfinite(value) for values in self.values for value in values.values())

    @property
    def masked(self) -> bool:
        """Whether a network's step was left out: the same on every rank."""
        return any(not isfinite(value) for name, value in self.values[-1].items() if name.startswith("grad_norm/"))

    @property
    def terms(self) -> list[dict[str, float]]:
        """Of each micro-batch, the losses that are no finite numbers; their weighted sums are left out."""
        return [
            {
                name: value
                for name, value in values.items()
                if not isfinite(value) and not name.startswith("grad_norm/") and not name.endswith("/total")
            }
            for values in self.values
        ]


class NonFiniteGuard:
    """Keeps account of the clips, reads the verdicts, tells what went wrong, and ends a run where it is too much."""

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        accounts: ClipAccounting,
        tracker: Tracker,
        keep_networks: Callable[[Path], None],
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.accounts = accounts
        self.tracker = tracker
        self.keep_networks = keep_networks
        self._pending: deque[_PendingReadback] = deque()
        self._due: list[_StepResult] = []
        self._overflows_in_a_row = 0

    def add(self, update: int, clips: int, batches: Sequence[Batch], found: Sequence[Mapping[str, Tensor]]) -> None:
        """Takes in an update just done. Reads nothing back.

        Args:
            update: its number.
            clips: in it, on all ranks.
            batches: this rank's micro-batches, on the CPU.
            found: what each of them came to.
        """
        own = torch.stack([value.detach().float() for values in found for value in values.values()])
        values = torch.empty(own.shape, pin_memory=own.is_cuda)
        values.copy_(own, non_blocking=True)
        arrived = torch.cuda.Event() if own.is_cuda else None  # type: ignore[no-untyped-call]
        if arrived is not None:
            arrived.record()
        self._pending.append(
            _PendingReadback(update, clips, batches, [list(names) for names in found], values, arrived)
        )
        self.accounts.count((clip for batch in batches for clip in batch.clip_ids), ())

    def count_pending(self, update: Sequence[Batch]) -> int:
        """How much this rank has to tell before ``update``: of its clips, and of the updates that are due."""
        self._due += self._arrived(leave=LAG_UPDATES)
        return sum(len(batch.rejections) for batch in update) + sum(not reading.is_finite for reading in self._due)

    def handle_reports(self, update: Sequence[Batch], state: TrainState, any_rank: bool) -> None:
        """Takes up what :meth:`count_pending` counted. Runs on every rank.

        Args:
            update: the one to come.
            state: what was counted too early is taken back in it.
            any_rank: whether any rank has something to tell.

        Raises:
            NonFiniteLossError: too many updates in a row came to no finite number.
            TooManyRejectedError: too many clips cannot be used.
        """
        readings, self._due = self._due, []
        own = [rejection for batch in update for rejection in batch.rejections]
        reports = [report for reading in readings if (report := self._report(reading))]
        told = self.runtime.all_gather_object((own, reports)) if any_rank else []
        for reading in readings:
            self._handle_result(reading, [r for _, found in told for r in found if r.update == reading.update], state)
        # A clip may come several times an epoch, even in one update: it is told of once.
        fresh = {found.clip: found for founds, _ in told for found in founds if not self.accounts.knows(found.clip)}
        if fresh:
            self._reject(list(fresh.values()), state.update + 1, update[0].spec.epoch, state)
        # Not before: if that ends the run, they come again when it goes on.
        self.accounts.count((), (rejection.clip for rejection in own))

    def flush(self, state: TrainState) -> None:
        """Waits for all verdicts that are out, and takes them up. Runs on every rank. A CPU-GPU sync point."""
        self._due += self._arrived(leave=0)
        own = sum(not reading.is_finite for reading in self._due)
        self.handle_reports((), state, any_rank=self.runtime.all_reduce_sum(torch.tensor([own])).item() > 0)

    def reject_validation_clips(self, rejections: Sequence[Incident], state: TrainState) -> None:
        """Takes up what validation cannot use, the same on every rank; what is known is not told again."""
        fresh = [rejection for rejection in rejections if not self.accounts.knows(rejection.clip)]
        if fresh:
            self._reject(fresh, state.update, state.epoch, state)

    def close_epoch(self, epoch: int, not_reached: int = 0) -> str:
        """How the clips of an epoch add up, in words. Runs on every rank.

        Raises:
            AccountingError: they do not.
            TooManyRejectedError: none was trained on.
        """
        return self.accounts.finish_epoch(epoch, self._totals(), not_reached)

    @staticmethod
    def require_trained(state: TrainState) -> None:
        """Refuses a run, with those that it resumed, of which no update reached the weights. Same on every rank.

        Raises:
            NothingTrainedError: gives the counts.
        """
        if not state.clips_trained:
            raise NothingTrainedError(
                f"Nothing was trained in {state.update} update(s): {state.clips_masked} clips were in masked updates "
                f"and {state.clips_rejected} were rejected, as rejected.jsonl of the run says. No voice was written, "
                "and what was in its place is as it was. Mend the data (run prepare_data again), or lower "
                "--learning_rate, and start anew with another --checkpoint_dir."
            )

    def save(self) -> dict[str, object]:
        """The accounts of all ranks, for a checkpoint. Runs on every rank."""
        return self.accounts.save(self._totals())

    def _totals(self) -> NDArray[np.int32]:
        totals: NDArray[np.int32] = self.runtime.all_reduce_sum(torch.from_numpy(self.accounts.counts())).numpy()
        return totals

    def _arrived(self, leave: int) -> list[_StepResult]:
        readings = []
        while len(self._pending) > leave:
            pending = self._pending.popleft()
            if pending.arrived is not None:
                pending.arrived.synchronize()
            rest = iter(pending.values.tolist())
            values = [{name: next(rest) for name in names} for names in pending.names]
            readings.append(_StepResult(pending.update, pending.clips, pending.batches, values))
        return readings

    def _reject(self, rejections: Sequence[Incident], update: int, epoch: int, state: TrainState) -> None:
        self.tracker.incidents(update, epoch, rejections)
        self.accounts.reject(rejections)
        state.clips_rejected += len(rejections)

    def _handle_result(self, reading: _StepResult, reports: Sequence[_Report], state: TrainState) -> None:
        """Counts one update, the same on every rank, and tells of it."""
        self._reclassify_as_masked(reading, state)
        if not reports:
            state.nonfinite_in_a_row = state.nonfinite_in_a_row if reading.masked else 0
            return
        if self.runtime.is_main_process and reports[0].file:
            self.keep_networks(self._batches_file(reading.update))
        state.updates_nonfinite += 1
        state.nonfinite_in_a_row += 1
        # Where a loss is the cause, the ranks that merely heard of it through the gradient keep still.
        causes = [report for report in reports if report.terms] or reports
        incidents = [report.incident() for report in causes]
        self.tracker.incidents(reading.update, reading.batches[0].spec.epoch, incidents)
        if state.nonfinite_in_a_row > self.config.max_nonfinite_updates:
            for later in self._arrived(leave=0):
                self._reclassify_as_masked(later, state)
            raise NonFiniteLossError(
                f"{state.nonfinite_in_a_row} updates in a row came to no finite number, more than "
                f"--max_nonfinite_updates {self.config.max_nonfinite_updates}; the last: {incidents[0]}. The weights "
                "are as they were before. Look at these clips; or lower --learning_rate, give --max_grad_norm 10, or "
                "use --precision fp32."
            )

    def _reclassify_as_masked(self, reading: _StepResult, state: TrainState) -> None:
        if reading.masked:
            state.clips_trained -= reading.clips
            state.clips_masked += reading.clips
            self.accounts.mask(clip for batch in reading.batches for clip in batch.clip_ids)

    def _report(self, reading: _StepResult) -> _Report | None:
        """What this rank has to say of an update; nothing if all is finite, or fp16's gradient scale was too large."""
        if reading.is_finite:
            self._overflows_in_a_row = 0
            return None
        terms = {name: value for found in reading.terms for name, value in found.items()}
        if not terms and self.runtime.precision == "fp16":
            self._overflows_in_a_row += 1
            if self._overflows_in_a_row <= _SCALINGS:
                return None
        batches = [batch for batch, found in zip(reading.batches, reading.terms, strict=True) if found or not terms]
        clips = tuple(clip for batch in batches for clip in batch.clip_ids)
        file = self._batches_file(reading.update) / f"rank{self.runtime.rank}.safetensors"
        others = [place for place in file.parent.parent.glob("update-*") if place != file.parent]
        if len(others) >= _KEPT:
            return _Report(reading.update, terms, clips, "")
        # All of them, as each draws its random numbers behind those before it.
        write_batches(file, reading.batches, reading.update, self.runtime.rank, self.config.seed)
        return _Report(reading.update, terms, clips, str(file))

    def _batches_file(self, update: int) -> Path:
        return self.tracker.run_dir / "nonfinite" / f"update-{update:06}"


_TENSORS = ("tokens", "token_lengths", "waveform", "frame_lengths", "speaker_ids")


def write_batches(file: Path, batches: Sequence[Batch], update: int, rank: int, seed: int) -> None:
    """Keeps one rank's micro-batches of an update, and what its random numbers came from."""
    tensors = {
        f"{number}/{name}": tensor.contiguous()
        for number, batch in enumerate(batches)
        for name in _TENSORS
        if (tensor := getattr(batch, name)) is not None
    }
    record = {"update": update, "rank": rank, "seed": seed, "clips": [batch.clip_ids for batch in batches]}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"record": json.dumps(record)})
