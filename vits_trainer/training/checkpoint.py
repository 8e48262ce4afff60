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
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import VitsModel, VitsTokenizer

from vits_trainer.config.options import HIGHER_IS_BETTER
from vits_trainer.config.serialization import save_config
from vits_trainer.config.train import TrainConfig
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.models.discriminator import Discriminator, save_discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.pretrained import state_on_cpu
from vits_trainer.training.early_stopping import Selection
from vits_trainer.training.meter import DeviceMeansState
from vits_trainer.training.optim import AVERAGED_UPDATES, Ema, NetworkOptimizer
from vits_trainer.utils.errors import CheckpointError, SavingError
from vits_trainer.utils.files import (
    MARKER,
    Kind,
    atomic_write,
    claim,
    fsync_dir,
    is_ours,
    mark,
    move,
    move_aside,
    remove,
    sha256,
    sync_tree,
)
from vits_trainer.utils.finite_weights import require_finite, weights_of

logger = logging.getLogger("vits_trainer")

MANIFEST = "manifest.json"
_AVERAGE = "average.safetensors"
BEST = "best.json"
_NAME = re.compile(r"checkpoint-(\d+)")
CHECKPOINT = Kind(
    "checkpoint",
    re.compile(
        r"voice/[^/]*|(generator|discriminator|average|optimizer_\w+)\.safetensors|config\.yaml"
        r"|(state|manifest)\.json(\.part)?"
    ),
    lambda folder: (folder / "voice/config.json").is_file(),
)
"""Identifies folders of ours, complete or under a temporary name."""
_FORMAT = 5
_PATIENCE_S = 60
"""How long to wait for another run to release the folder of checkpoints."""
_USE_EARLIER = "Resume from an earlier checkpoint: --resume_from_checkpoint with its path."


@dataclass
class TrainState:
    """Progress of a run, over all ranks."""

    update: int = 0
    """Updates done."""
    epoch: int = 0
    """Epoch of the last update, from 0."""
    clips_trained: int = 0
    """Clips of updates that changed the weights."""
    clips_masked: int = 0
    """Clips of updates that were masked because of NaN or Inf."""
    clips_rejected: int = 0
    """Clips that could not be used."""
    updates_nonfinite: int = 0
    nonfinite_in_a_row: int = 0
    accounts: dict[str, Any] = field(default_factory=dict)
    """Accounting of the epoch's clips; set when the state is saved."""
    selection: Selection = field(default_factory=Selection)


def checkpoint_gib(optimizers: Iterable[NetworkOptimizer]) -> float:
    """Returns the size of a checkpoint: float32 weights, and two AdamW moments and the EMA of each trained weight."""
    values = 0
    for optimizer in optimizers:
        moments_and_ema = 3 if optimizer.ema else 2
        for p in optimizer.network.parameters():
            values += p.numel() * (1 + moments_and_ema * p.requires_grad)
    return values * 4 / 2**30


@dataclass(frozen=True)
class RunFingerprint:
    """Settings of a run that a resumed run is compared with."""

    must_match: Mapping[str, Any]
    """Must be equal: the order of clips and the meaning of the weights depend on them."""
    may_change: Mapping[str, Any]
    """May change; changes are logged."""
    launch: str
    """Id of the launch: processes that its launcher restarts resume automatically."""


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
            "format": _FORMAT,
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
            (temporary / "state.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
            sync_tree(temporary)
            atomic_write(temporary / MANIFEST, _manifest(temporary))
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
                optimizer.scaler.load_state_dict(record["scales"][optimizer.name])
                if optimizer.ema is not None:
                    _restore_ema(checkpoint_dir, optimizer.ema)
            state = {**record["state"], "selection": Selection(**record["state"]["selection"])}
            return TrainState(**state), record["losses"]
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint_dir} cannot be read ({error}). Resume from another checkpoint."
            ) from error

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
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        best = min(scores, key=lambda path: sign * scores[path], default=None)
        if best is not None:
            pointer = {"checkpoint": best.name, f"validation/{metric}": scores[best]}
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
    """Loads a checkpoint's weights into networks with weight norm. Raises as safetensors and ``load_state_dict`` do.

    Raises:
        ModelError: a weight is NaN or Inf.
    """
    model.load_state_dict(_load_finite(checkpoint_dir / "generator.safetensors"))
    if discriminator is not None:
        discriminator.load_state_dict(_load_finite(checkpoint_dir / "discriminator.safetensors"))


def _load_finite(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(path)
    require_finite(tensors, path, _USE_EARLIER)
    return tensors


def load_average(checkpoint_dir: Path, model: VitsModel) -> None:
    """Loads a checkpoint's EMA weights into a voice that has its other weights, as for an export.

    Does nothing if the run kept no EMA. Raises as safetensors does.

    Raises:
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


def list_newest_first(directory: Path) -> list[Path]:
    """Returns the checkpoints in ``directory``, the newest first."""
    checkpoints = [path for path in directory.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(checkpoints, key=update_of, reverse=True)


def verify_checkpoint(checkpoint_dir: Path) -> None:
    """Raises :class:`CheckpointError` unless all files of the checkpoint match its manifest."""
    path = checkpoint_dir / MANIFEST
    try:
        files: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["files"]
        for name, written in files.items():
            size_bytes = (checkpoint_dir / name).stat().st_size
            if size_bytes != written["bytes"]:
                raise _damaged(checkpoint_dir, f"{name} has {size_bytes} bytes, not {written['bytes']}")
            if sha256(checkpoint_dir / name) != written["sha256"]:
                raise _damaged(checkpoint_dir, f"the content of {name} is not what was written (SHA-256)")
    except FileNotFoundError as error:
        if not (checkpoint_dir / "state.json").is_file():
            raise CheckpointError(
                f"{checkpoint_dir} is not a checkpoint (no state.json). Give the path of a checkpoint-<update> folder."
            ) from error
        raise _damaged(checkpoint_dir, f"{Path(str(error.filename)).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(checkpoint_dir, f"{path.name} cannot be read ({error})") from error


def read_record(checkpoint_dir: Path) -> dict[str, Any]:
    """Returns state.json of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or has another format version.
    """
    try:
        record: dict[str, Any] = json.loads((checkpoint_dir / "state.json").read_text(encoding="utf-8"))
        written = record.get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint_dir}: state.json cannot be read ({error}). Resume from another one."
        ) from error
    if written != _FORMAT:
        raise CheckpointError(
            f"{checkpoint_dir} was written by another version of vits_trainer (format {written}, now {_FORMAT}). "
            "Resume with that version, or start a new run."
        )
    return record


def _damaged(checkpoint_dir: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint_dir} is damaged: {what}.")


def update_of(checkpoint_dir: Path) -> int:
    """Returns the update in a checkpoint's name."""
    return int(checkpoint_dir.name.partition("-")[2])


def _score(checkpoint_dir: Path) -> float | None:
    """Returns the value of the best metric; None if the update was not validated or the checkpoint is damaged."""
    try:
        score: float | None = read_record(checkpoint_dir)["state"]["selection"]["score"]
    except CheckpointError:  # reported when a run resumes from it
        return None
    return score


def _manifest(directory: Path) -> str:
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MARKER  # hidden files may be lost when a checkpoint is copied
    }
    return json.dumps({"files": files}, indent=1)


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
        index: {slot: tensors[f"{name}/{slot}"] for slot in slots}
        for index, (name, _) in enumerate(_named_parameters(optimizer))
    }
    groups = optimizer.optimizer.state_dict()["param_groups"]
    optimizer.optimizer.load_state_dict({"state": states, "param_groups": groups})
