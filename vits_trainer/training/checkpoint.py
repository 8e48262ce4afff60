"""Checkpoints: whole, or not there at all. The only writer of run state; nothing in one is ever unpickled.

checkpoint-<update>/
    voice/                              config.json and tokenizer of the voice
    generator.safetensors               weights in training form (weight norm as g and v)
    discriminator.safetensors
    average.safetensors                 averages of the generator's trained weights (--ema_decay)
    optimizer_<network>.safetensors     AdamW's moments under the parameters' names
    config.yaml                         the run's configuration
    state.json                          counts, losses since the last logging point, what a resume compares
    manifest.json                       size and SHA-256 of all of these; written last
best.json                               which checkpoint has the best validation so far, and the value

No random generator is in it: what an update draws is a pure function of the seed, the update and the rank.
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
"""Or what becomes one, under a temporary name."""
_FORMAT = 5
_PATIENCE_S = 60
_EARLIER = "Take an earlier checkpoint: --resume_from_checkpoint and its path."


@dataclass
class TrainState:
    """How far a run has come, over all ranks."""

    update: int = 0
    """Updates done."""
    epoch: int = 0
    """Epoch of the last update, from 0."""
    clips_trained: int = 0
    """Whose update reached the weights."""
    clips_masked: int = 0
    """Whose update was left out, as it came to no finite number."""
    clips_rejected: int = 0
    """That could not be used; again in each epoch."""
    updates_nonfinite: int = 0
    nonfinite_in_a_row: int = 0
    accounts: dict[str, Any] = field(default_factory=dict)
    """What has become of each clip of the epoch; filled in when it is saved."""
    selection: Selection = field(default_factory=Selection)


def checkpoint_gib(learners: Iterable[NetworkOptimizer]) -> float:
    """Size of one checkpoint: float32 weights, and two AdamW moments and the average of each trained one."""
    numbers = 0
    for learner in learners:
        moments_and_average = 3 if learner.ema else 2
        for p in learner.network.parameters():
            numbers += p.numel() * (1 + moments_and_average * p.requires_grad)
    return numbers * 4 / 2**30


@dataclass(frozen=True)
class RunFingerprint:
    """What a resumed run is compared by with the one that wrote the checkpoint."""

    must_match: Mapping[str, Any]
    """Must be equal: the order of clips and the sense of the weights depend on it."""
    may_change: Mapping[str, Any]
    """May change; what did is said."""
    launch: str
    """Of the launcher that started the run: those that it starts anew may resume unasked."""


class CheckpointManager:
    """The checkpoints of one run, in one folder."""

    def __init__(
        self, directory: Path, keep: int, runtime: Runtime, fingerprint: RunFingerprint, config: TrainConfig
    ) -> None:
        self.directory = directory
        self.keep = keep
        self.runtime = runtime
        self.fingerprint = fingerprint
        self.config = config
        self.last_save_s = 0.0
        """How long the last save took."""

    def save(
        self,
        state: TrainState,
        generator: Generator,
        discriminator: Discriminator | None,
        learners: list[NetworkOptimizer],
        tokenizer: VitsTokenizer,
        plan: Mapping[str, int],
        losses: DeviceMeansState,
    ) -> Path:
        """Writes ``checkpoint-<update>`` under a temporary name, renames it, then prunes. Runs on every rank.

        Args:
            state: how far the run is.
            generator: the network, not wrapped; its ``model`` is saved.
            discriminator: likewise; None under the mel objective.
            learners: of both networks: their optimisers and scalers.
            tokenizer: the voice's.
            plan: what the run was to come to, for a resume under the same settings.
            losses: this rank's since the last logging point.

        Raises:
            SavingError: it cannot be written, or a weight is not finite.
        """
        began = time.perf_counter()
        fingerprint = asdict(self.fingerprint)
        fingerprint["may_change"]["cpu_threads"] = torch.get_num_threads()
        record = {
            "format": _FORMAT,
            "state": asdict(state),
            "plan": dict(plan),
            "fingerprint": fingerprint,
            "scales": {learner.name: learner.scaler.state_dict() for learner in learners},
            "losses": self.runtime.all_gather_object(losses),
        }

        def write() -> Path:
            place = self.directory / f"checkpoint-{state.update}"
            self._require_finite(place, generator, discriminator, learners)
            temporary = self.directory / f".tmp-{place.name}"
            self.clear_temporary()
            temporary.mkdir(parents=True)
            mark(temporary, CHECKPOINT)
            write_networks(temporary, generator, discriminator, tokenizer, self.config)
            for learner in learners:
                save_file(_optimizer_state(learner), temporary / f"optimizer_{learner.name}.safetensors")
                if learner.ema is not None:
                    save_file(_on_cpu(learner.ema.state_dict()), temporary / _AVERAGE)
            (temporary / "state.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
            sync_tree(temporary)
            atomic_write(temporary / MANIFEST, _manifest(temporary))
            if place.exists():
                logger.warning("%s is in the way: moved to %s.", place, move_aside(place, "set-aside").name)
            move(temporary, place)
            fsync_dir(self.directory)
            self._prune(place)
            return place

        try:
            return self.runtime.on_main_then_broadcast(write)
        except (OSError, SafetensorError) as error:
            raise SavingError(
                f"{self.directory}: checkpoint-{state.update} could not be written ({error}). The ones before are as "
                "they were: make room, then go on with --resume_from_checkpoint latest."
            ) from error
        finally:
            self.last_save_s = time.perf_counter() - began

    def restore(
        self,
        checkpoint_dir: Path,
        generator: Generator,
        discriminator: Discriminator | None,
        learners: list[NetworkOptimizer],
    ) -> tuple[TrainState, list[DeviceMeansState]]:
        """Puts weights, optimisers and scalers back where ``checkpoint_dir`` left them.

        Returns:
            How far the run had come, and each rank's losses since the last logging point.

        Raises:
            CheckpointError: it cannot be read, or is of another run or other networks.
            ModelError: a weight or a moment is not finite.
        """
        record = read_record(checkpoint_dir)
        try:
            load_networks(checkpoint_dir, generator.model, discriminator)
            for learner in learners:
                _load_optimizer_state(learner, _finite(checkpoint_dir / f"optimizer_{learner.name}.safetensors"))
                learner.scaler.load_state_dict(record["scales"][learner.name])
                if learner.ema is not None:
                    _restore_average(checkpoint_dir, learner.ema)
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
        learners: list[NetworkOptimizer],
    ) -> None:
        """Refuses to write what could not be resumed: it would push out checkpoints that can."""
        parts = [weights_of(generator.model)] + ([] if discriminator is None else [weights_of(discriminator)])
        parts += [_moments(learner) for learner in learners]
        parts += [learner.ema.state_dict() for learner in learners if learner.ema is not None]
        remedy = "It was not written, and those before are as they were: go on from one with a lower --learning_rate."
        for part in parts:
            require_finite(part, checkpoint_dir, remedy, SavingError)

    def clear_temporary(self) -> None:
        """Removes what an interrupted save left behind; what is somebody else's there is put aside."""
        for path in list(self.directory.glob(".tmp-checkpoint-*")):
            if is_ours(path, CHECKPOINT):
                remove(path, CHECKPOINT)
            if path.exists():
                logger.warning("%s is in the way: moved to %s.", path, move_aside(path, "set-aside").name)

    def _prune(self, written: Path) -> None:
        """Deletes all but the newest ``keep`` and the best; ``written`` was the last of them to be made whole."""
        scores = {place: score for place in list_newest_first(self.directory) if (score := _score(place)) is not None}
        metric = self.config.best_metric
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        best = min(scores, key=lambda place: sign * scores[place], default=None)
        if best is not None:
            pointer = {"checkpoint": best.name, f"validation/{metric}": scores[best]}
            atomic_write(self.directory / BEST, json.dumps(pointer, indent=1) + "\n")
        for place in list_newest_first(self.directory)[self.keep :] if self.keep else []:
            if place not in (best, written) and is_ours(place, CHECKPOINT):  # other trainers name theirs alike
                remove(place, CHECKPOINT)


def write_networks(
    folder: Path,
    generator: Generator,
    discriminator: Discriminator | None,
    tokenizer: VitsTokenizer,
    config: TrainConfig,
) -> None:
    """Writes both networks in training form, and what is needed to build them again."""
    (folder / "voice").mkdir(parents=True, exist_ok=True)
    generator.model.config.save_pretrained(folder / "voice")
    tokenizer.save_pretrained(folder / "voice")
    save_file(state_on_cpu(generator.model), folder / "generator.safetensors")
    if discriminator is not None:
        save_discriminator(discriminator, folder / "discriminator.safetensors")
    save_config(config, folder / "config.yaml")


def load_networks(checkpoint_dir: Path, model: VitsModel, discriminator: Discriminator | None) -> None:
    """Puts a checkpoint's weights into networks in training form. Raises as safetensors and ``load_state_dict`` do.

    Raises:
        ModelError: a weight is not finite.
    """
    model.load_state_dict(_finite(checkpoint_dir / "generator.safetensors"))
    if discriminator is not None:
        discriminator.load_state_dict(_finite(checkpoint_dir / "discriminator.safetensors"))


def _finite(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(path)
    require_finite(tensors, path, _EARLIER)
    return tensors


def load_average(checkpoint_dir: Path, model: VitsModel) -> None:
    """Puts a checkpoint's averages into a voice in training form that has its weights: the voice as it is exported.

    Does nothing where the run kept none. Raises as safetensors does, and ModelError where one is not finite.
    """
    if (checkpoint_dir / _AVERAGE).is_file():
        averages = _finite(checkpoint_dir / _AVERAGE)
        averages.pop(AVERAGED_UPDATES)
        model.load_state_dict(averages, strict=False)


def _restore_average(checkpoint_dir: Path, average: Ema) -> None:
    if (checkpoint_dir / _AVERAGE).is_file():
        average.load_state_dict(_finite(checkpoint_dir / _AVERAGE))
    else:
        average.restart()
        logger.warning("%s holds no average of the weights: it begins with those of that update.", checkpoint_dir)


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[None]:
    """Inside, no other run writes to the folder of checkpoints.

    Raises:
        CheckpointError: another run has it, even after a minute: one that was stopped may still be saving. Or it
            cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = claim(directory / ".lock", _PATIENCE_S, directory)
    except OSError as error:
        raise CheckpointError(
            f"--checkpoint_dir {directory} cannot be written ({error.strerror or error}): give another one."
        ) from error
    if held is None:
        raise CheckpointError(
            f"{directory}: another run is at work there. Wait for it, stop it, or give another --checkpoint_dir."
        )
    with held:
        yield


def list_newest_first(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``."""
    found = [path for path in directory.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=update_of, reverse=True)


def verify(checkpoint_dir: Path) -> None:
    """Raises :class:`CheckpointError` unless every file of the checkpoint is there as it was written."""
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
                f"{checkpoint_dir} is no checkpoint (it has no state.json). Give a checkpoint-<update> folder."
            ) from error
        raise _damaged(checkpoint_dir, f"{Path(str(error.filename)).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(checkpoint_dir, f"{path.name} cannot be read ({error})") from error


def read_record(checkpoint_dir: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is of an older kind.
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
    """The update in a checkpoint's name."""
    return int(checkpoint_dir.name.partition("-")[2])


def _score(checkpoint_dir: Path) -> float | None:
    """The best metric's value, where it was validated."""
    try:
        score: float | None = read_record(checkpoint_dir)["state"]["selection"]["score"]
    except CheckpointError:  # damaged: named when someone wants to resume from it
        return None
    return score


def _manifest(directory: Path) -> str:
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MARKER  # who copies a checkpoint may leave out hidden files
    }
    return json.dumps({"files": files}, indent=1)


def _named_parameters(learner: NetworkOptimizer) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the optimiser moves, in its order, by the same names however many processes there are."""
    parameters = learner.network.named_parameters()
    return [(name.removeprefix("module."), p) for name, p in parameters if p.requires_grad]


def _optimizer_state(learner: NetworkOptimizer) -> dict[str, Tensor]:
    return _on_cpu(_moments(learner))


def _moments(learner: NetworkOptimizer) -> dict[str, Tensor]:
    state = learner.optimizer.state
    return {
        f"{name}/{slot}": value
        for name, parameter in _named_parameters(learner)
        for slot, value in state[parameter].items()
    }


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _load_optimizer_state(learner: NetworkOptimizer, tensors: dict[str, Tensor]) -> None:
    slots = {key.rpartition("/")[2] for key in tensors}
    states = {
        index: {slot: tensors[f"{name}/{slot}"] for slot in slots}
        for index, (name, _) in enumerate(_named_parameters(learner))
    }
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": states, "param_groups": groups})
