"""Checkpoints, written atomically. The only writer of run state; nothing is pickled.

checkpoint-<update>/
    voice/                              config.json and tokenizer of the voice
    generator.safetensors               weights with weight norm (g and v)
    discriminator.safetensors
    average.safetensors                 EMA of the generator's trained weights (--ema_decay)
    optimizer_<network>.safetensors     AdamW's moments under the parameters' names
    config.yaml                         the run's configuration
    state.json                          counts, losses since the last log point, what a resume compares
    manifest.json                       size and SHA-256 of all of these; written last
best.json                               the checkpoint with the best validation so far, and its value

Random generator states are not saved: random numbers of an update depend only on the seed, the update and the rank.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import VitsModel, VitsTokenizer

from vits_trainer.config.serialization import save_config
from vits_trainer.config.train import TrainConfig
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.evaluation.ranking import rank
from vits_trainer.models.discriminator import Discriminator, save_discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.pretrained import state_on_cpu
from vits_trainer.training.checkpoint_record import (
    BEST,
    CHECKPOINT,
    FORMAT,
    MANIFEST,
    USE_EARLIER,
    RunFingerprint,
    TrainState,
    list_newest_first,
    manifest,
    read_record,
)
from vits_trainer.training.meter import DeviceMeansState
from vits_trainer.training.optim import AVERAGED_UPDATES, Ema, NetworkOptimizer
from vits_trainer.utils.errors import CheckpointError, SavingError
from vits_trainer.utils.files import (
    atomic_write,
    claim,
    fsync_dir,
    is_ours,
    mark,
    move,
    move_aside,
    remove,
    sync_tree,
)
from vits_trainer.utils.finite_weights import require_finite, weights_of
from vits_trainer.utils.records import read_tensors
from vits_trainer.utils.strings import first_line

logger = logging.getLogger(__name__)

_AVERAGE = "average.safetensors"
_PATIENCE_S = 60
"""How long to wait for another run to release the folder of checkpoints."""


def checkpoint_gib(optimizers: Iterable[NetworkOptimizer]) -> float:
    """Returns the size of a checkpoint: float32 weights, and two AdamW moments and the EMA of each trained weight."""
    values = 0
    for optimizer in optimizers:
        moments_and_ema = 3 if optimizer.ema else 2
        for p in optimizer.network.parameters():
            values += p.numel() * (1 + moments_and_ema * p.requires_grad)
    return values * 4 / 2**30


class CheckpointManager:
    """Saves, restores and prunes the checkpoints of one run."""

    def __init__(
        self, directory: Path, keep: int, runtime: Runtime, fingerprint: RunFingerprint, config: TrainConfig
    ) -> None:
        self.directory = directory
        self.keep = keep
        self.runtime = runtime
        self.fingerprint = fingerprint
        self.config = config
        self.last_save_s = 0.0
        """Duration of the last save, in seconds."""

    def save(
        self,
        state: TrainState,
        generator: Generator,
        discriminator: Discriminator | None,
        optimizers: list[NetworkOptimizer],
        tokenizer: VitsTokenizer,
        plan: Mapping[str, int],
        losses: DeviceMeansState,
    ) -> Path:
        """Writes ``checkpoint-<update>`` under a temporary name, renames it, then prunes. Runs on every rank.

        Args:
            state: progress of the run.
            generator: not wrapped; its ``model`` is saved.
            discriminator: not wrapped; None under the mel objective.
            optimizers: of the networks, with their scalers.
            tokenizer: of the voice.
            plan: of the run, for a resume with the same settings.
            losses: of this rank since the last log point.

        Raises:
            SavingError: it cannot be written, or a weight is NaN or Inf.
        """
        start_s = time.perf_counter()
        fingerprint = asdict(self.fingerprint)
        fingerprint["may_change"]["cpu_threads"] = torch.get_num_threads()
        record = {
            "format": FORMAT,
            "state": asdict(state),
            "plan": dict(plan),
            "fingerprint": fingerprint,
            "scales": {optimizer.name: optimizer.scaler.state_dict() for optimizer in optimizers},
            "losses": self.runtime.all_gather_object(losses),
        }

        def write() -> Path:
            path = self.directory / f"checkpoint-{state.update}"
            self._require_finite(path, generator, discriminator, optimizers)
            temporary = self.directory / f".tmp-{path.name}"
            self.clear_temporary()
            temporary.mkdir(parents=True)
            mark(temporary, CHECKPOINT)
            write_networks(temporary, generator, discriminator, tokenizer, self.config)
            for optimizer in optimizers:
                save_file(_optimizer_state(optimizer), temporary / f"optimizer_{optimizer.name}.safetensors")
                if optimizer.ema is not None:
                    save_file(_on_cpu(optimizer.ema.state_dict()), temporary / _AVERAGE)
            # Messages may contain undecodable file names, which are not valid JSON.
            content = json.dumps(record, indent=1, ensure_ascii=False).encode(errors="replace")
            (temporary / "state.json").write_bytes(content)
            sync_tree(temporary)
            atomic_write(temporary / MANIFEST, manifest(temporary))
            if path.exists():
                logger.warning("%s already exists: moved to %s.", path, move_aside(path, "set-aside").name)
            move(temporary, path)
            fsync_dir(self.directory)
            self._prune(path)
            return path

        try:
            return self.runtime.on_main_then_broadcast(write)
        except (OSError, SafetensorError) as error:
            raise SavingError(
                f"{self.directory}: checkpoint-{state.update} could not be written ({error}). Earlier checkpoints are "
                "unchanged: free disk space, then resume with --resume_from_checkpoint latest."
            ) from error
        finally:
            self.last_save_s = time.perf_counter() - start_s

    def restore(
        self,
        checkpoint_dir: Path,
        generator: Generator,
        discriminator: Discriminator | None,
        optimizers: list[NetworkOptimizer],
    ) -> tuple[TrainState, list[DeviceMeansState]]:
        """Restores weights, optimizers and scalers from ``checkpoint_dir``.

        Returns:
            The state of the run, and each rank's losses since the last log point.

        Raises:
            CheckpointError: it cannot be read, or belongs to another run or other networks.
            ModelError: a weight or moment is NaN or Inf.
        """
        record = read_record(checkpoint_dir)
        try:
            load_networks(checkpoint_dir, generator.model, discriminator)
            for optimizer in optimizers:
                _load_optimizer_state(
                    optimizer, _load_finite(checkpoint_dir / f"optimizer_{optimizer.name}.safetensors")
                )
                optimizer.scaler.load_state_dict(record.scales[optimizer.name])
                if optimizer.ema is not None:
                    _restore_ema(checkpoint_dir, optimizer.ema)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{checkpoint_dir} cannot be read ({first_line(error)}). {USE_EARLIER}") from error
        return record.state, record.losses

    @staticmethod
    def _require_finite(
        checkpoint_dir: Path,
        generator: Generator,
        discriminator: Discriminator | None,
        optimizers: list[NetworkOptimizer],
    ) -> None:
        """Raises SavingError for NaN or Inf: saving would prune checkpoints that can be resumed, unlike this one."""
        parts = [weights_of(generator.model)] + ([] if discriminator is None else [weights_of(discriminator)])
        parts += [_moments(optimizer) for optimizer in optimizers]
        parts += [optimizer.ema.state_dict() for optimizer in optimizers if optimizer.ema is not None]
        remedy = "It was not written; earlier checkpoints are unchanged. Resume from one with a lower --learning_rate."
        for part in parts:
            require_finite(part, checkpoint_dir, remedy, SavingError)

    def clear_temporary(self) -> None:
        """Removes the leftovers of an interrupted save; files of others under the same names are moved away."""
        for path in list(self.directory.glob(".tmp-checkpoint-*")):
            if is_ours(path, CHECKPOINT):
                remove(path, CHECKPOINT)
            if path.exists():
                logger.warning("%s contains files of others: moved to %s.", path, move_aside(path, "set-aside").name)

    def _prune(self, written: Path) -> None:
        """Deletes all checkpoints but the newest ``keep``, the best, and ``written``, the one just completed."""
        scores = {path: score for path in list_newest_first(self.directory) if (score := _score(path)) is not None}
        metric = self.config.best_metric
        best = min(scores, key=lambda path: rank(metric, *scores[path]), default=None)
        if best is not None:
            pointer = {"checkpoint": best.name, f"validation/{metric}": scores[best][0]}
            atomic_write(self.directory / BEST, json.dumps(pointer, indent=1) + "\n")
        for path in list_newest_first(self.directory)[self.keep :] if self.keep else []:
            if path not in (best, written) and is_ours(path, CHECKPOINT):  # other trainers use the same names
                remove(path, CHECKPOINT)


def write_networks(
    folder: Path,
    generator: Generator,
    discriminator: Discriminator | None,
    tokenizer: VitsTokenizer,
    config: TrainConfig,
) -> None:
    """Writes both networks with weight norm, and the configuration and tokenizer needed to rebuild them."""
    (folder / "voice").mkdir(parents=True, exist_ok=True)
    generator.model.config.save_pretrained(folder / "voice")
    tokenizer.save_pretrained(folder / "voice")
    save_file(state_on_cpu(generator.model), folder / "generator.safetensors")
    if discriminator is not None:
        save_discriminator(discriminator, folder / "discriminator.safetensors")
    save_config(config, folder / "config.yaml")


def load_networks(checkpoint_dir: Path, model: VitsModel, discriminator: Discriminator | None) -> None:
    """Loads a checkpoint's weights into networks with weight norm. Raises as ``load_state_dict`` does.

    Raises:
        CheckpointError: a file cannot be read.
        ModelError: a weight is NaN or Inf.
    """
    model.load_state_dict(_load_finite(checkpoint_dir / "generator.safetensors"))
    if discriminator is not None:
        discriminator.load_state_dict(_load_finite(checkpoint_dir / "discriminator.safetensors"))


def _load_finite(path: Path) -> dict[str, Tensor]:
    tensors = read_tensors(path, CheckpointError, USE_EARLIER)
    require_finite(tensors, path, USE_EARLIER)
    return tensors


def load_average(checkpoint_dir: Path, model: VitsModel) -> None:
    """Loads a checkpoint's EMA weights into a voice that has its other weights, as for an export.

    Does nothing if the run kept no EMA.

    Raises:
        CheckpointError: the file cannot be read.
        ModelError: a weight is NaN or Inf.
    """
    if (checkpoint_dir / _AVERAGE).is_file():
        averages = _load_finite(checkpoint_dir / _AVERAGE)
        averages.pop(AVERAGED_UPDATES)
        model.load_state_dict(averages, strict=False)


def _restore_ema(checkpoint_dir: Path, ema: Ema) -> None:
    if (checkpoint_dir / _AVERAGE).is_file():
        ema.load_state_dict(_load_finite(checkpoint_dir / _AVERAGE))
    else:
        ema.restart()
        logger.warning("%s contains no EMA weights: the EMA restarts from the weights of that update.", checkpoint_dir)


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[None]:
    """Inside, no other run writes to the folder of checkpoints.

    Waits up to a minute, because a run that was stopped may still be saving.

    Raises:
        CheckpointError: another run uses the folder, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = claim(directory / ".lock", _PATIENCE_S, directory)
    except OSError as error:
        raise CheckpointError(
            f"--checkpoint_dir {directory} cannot be written ({error.strerror or error}): choose another one."
        ) from error
    if held is None:
        raise CheckpointError(
            f"{directory}: another run is using it. Wait for it, stop it, or choose another --checkpoint_dir."
        )
    with held:
        yield


def _score(checkpoint_dir: Path) -> tuple[float, float] | None:
    """Returns value and mel for :func:`rank`; None if the update was not validated or the checkpoint is damaged."""
    try:
        selection = read_record(checkpoint_dir).state.selection
    except CheckpointError:  # reported when a run resumes from it
        return None
    return None if selection.score is None else (selection.score, selection.mel)


def _named_parameters(optimizer: NetworkOptimizer) -> list[tuple[str, nn.Parameter]]:
    """Returns the trained parameters in the optimizer's order; names do not depend on the number of processes."""
    parameters = optimizer.network.named_parameters()
    return [(name.removeprefix("module."), p) for name, p in parameters if p.requires_grad]


def _optimizer_state(optimizer: NetworkOptimizer) -> dict[str, Tensor]:
    return _on_cpu(_moments(optimizer))


def _moments(optimizer: NetworkOptimizer) -> dict[str, Tensor]:
    state = optimizer.optimizer.state
    return {
        f"{name}/{slot}": value
        for name, parameter in _named_parameters(optimizer)
        for slot, value in state[parameter].items()
    }


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _load_optimizer_state(optimizer: NetworkOptimizer, tensors: dict[str, Tensor]) -> None:
    slots = {key.rpartition("/")[2] for key in tensors}
    states = {
        index: {slot: _moment(tensors, name, slot, parameter) for slot in slots}
        for index, (name, parameter) in enumerate(_named_parameters(optimizer))
    }
    groups = optimizer.optimizer.state_dict()["param_groups"]
    optimizer.optimizer.load_state_dict({"state": states, "param_groups": groups})


def _moment(tensors: dict[str, Tensor], name: str, slot: str, parameter: nn.Parameter) -> Tensor:
    tensor = tensors[f"{name}/{slot}"]
    if tensor.shape not in ((), parameter.shape):
        raise ValueError(f"{name}/{slot} has shape {tuple(tensor.shape)}, expected {tuple(parameter.shape)}")
    return tensor
