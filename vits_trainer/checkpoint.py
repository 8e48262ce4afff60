"""Checkpoints: whole, or not there at all. The only writer of run state; nothing in one is ever unpickled.

checkpoint-<update>/
    voice/                              config.json and tokenizer of the voice
    generator.safetensors               weights in training form (weight norm as g and v)
    discriminator.safetensors
    optimizer_<network>.safetensors     AdamW's moments under the parameters' names
    rng-<rank>.safetensors              random number generators of each process
    config.yaml                         the run's configuration
    state.json                          counts, and what a resume must find unchanged
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import VitsTokenizer

from vits_trainer.config import TrainConfig, save_config
from vits_trainer.discriminator import Discriminator
from vits_trainer.errors import CheckpointError
from vits_trainer.generator import Generator
from vits_trainer.models import save_discriminator, state_on_cpu
from vits_trainer.optim import Learner
from vits_trainer.runtime import Runtime

_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class TrainState:
    """How far a run has come, over all ranks."""

    update: int = 0
    """Updates done."""
    epoch: int = 0
    """Epoch of the last update, from 0."""
    clips_trained: int = 0
    clips_rejected: int = 0


@dataclass(frozen=True)
class Identity:
    """What a resumed run must share with the one that wrote the checkpoint, as the order of clips depends on it."""

    run_name: str
    data: str
    """Fingerprint of the training clips: the prepared folder without what validation holds out."""
    world_size: int
    batch_size: int
    accumulation: int
    seed: int
    objective: str


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, directory: Path, keep: int, runtime: Runtime, identity: Identity, config: TrainConfig) -> None:
        self.directory = directory
        self.keep = keep
        self.runtime = runtime
        self.identity = identity
        self.config = config

    def save(
        self,
        state: TrainState,
        generator: Generator,
        discriminator: Discriminator | None,
        learners: list[Learner],
        tokenizer: VitsTokenizer,
    ) -> Path:
        """Writes ``checkpoint-<update>`` under a temporary name, renames it, then prunes. Runs on every rank."""
        place = self.directory / f"checkpoint-{state.update}"
        temporary = self.directory / f".tmp-{place.name}"
        if self.runtime.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.runtime.wait()
        save_file(_rng_state(), temporary / f"rng-{self.runtime.rank}.safetensors")
        if self.runtime.is_main:
            generator.model.config.save_pretrained(temporary / "voice")
            tokenizer.save_pretrained(temporary / "voice")
            save_file(state_on_cpu(generator.model), temporary / "generator.safetensors")
            if discriminator is not None:
                save_discriminator(discriminator, temporary / "discriminator.safetensors")
            for learner in learners:
                save_file(_optimizer_state(learner), temporary / f"optimizer_{learner.name}.safetensors")
            save_config(self.config, temporary / "config.yaml")
            scales = {learner.name: learner.scaler.state_dict() for learner in learners}
            record = {"state": asdict(state), "identity": asdict(self.identity), "scales": scales}
            (temporary / "state.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        self.runtime.wait()
        if self.runtime.is_main:
            shutil.rmtree(place, ignore_errors=True)
            temporary.rename(place)
            self._prune()
        self.runtime.wait()
        return place

    def restore(
        self, place: Path, generator: Generator, discriminator: Discriminator | None, learners: list[Learner]
    ) -> TrainState:
        """Puts weights, optimisers, scalers and random generators back where ``place`` left them.

        Raises:
            CheckpointError: it cannot be read, or is of another run or other networks.
        """
        record = read_record(place)
        then, now = record["identity"], asdict(self.identity)
        changed = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
        if changed:
            raise CheckpointError(
                f"{place} cannot be resumed, as it is of another run: {'; '.join(changed)}. "
                "Resume with the old settings, or start a new run in another --checkpoint_dir."
            )
        try:
            generator.model.load_state_dict(load_file(place / "generator.safetensors"))
            if discriminator is not None:
                discriminator.load_state_dict(load_file(place / "discriminator.safetensors"))
            for learner in learners:
                _load_optimizer_state(learner, load_file(place / f"optimizer_{learner.name}.safetensors"))
                learner.scaler.load_state_dict(record["scales"][learner.name])
            _load_rng_state(load_file(place / f"rng-{self.runtime.rank}.safetensors"))
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{place} cannot be read ({error}). Resume from another checkpoint.") from error
        return TrainState(**record["state"])

    def _prune(self) -> None:
        for place in newest_first(self.directory)[self.keep :] if self.keep else []:
            shutil.rmtree(place)


def newest_first(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``."""
    found = [path for path in directory.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def find(directory: Path, asked: str | None) -> Path | None:
    """The checkpoint to start from: None for a new run, the newest for ``latest``, else the one at the path ``asked``.

    Raises:
        CheckpointError: there is none; or a new run would start over existing checkpoints.
    """
    existing = newest_first(directory)
    if asked is None:
        if existing:
            raise CheckpointError(
                f"{directory} already holds {existing[0].name}. Go on from it with --resume_from_checkpoint latest, or "
                "start anew with another --checkpoint_dir (or delete this one)."
            )
        return None
    if asked == "latest":
        if not existing:
            raise CheckpointError(
                f"{directory} holds no checkpoint to resume from. Leave out --resume_from_checkpoint to start anew."
            )
        return existing[0]
    place = Path(asked)
    if not (place / "state.json").is_file():
        raise CheckpointError(f"{place} is no checkpoint (it has no state.json). Give a checkpoint-<update> folder.")
    return place


def read_record(place: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads((place / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place}: state.json cannot be read ({error}). Resume from another one.") from error
    return record


def _named_parameters(learner: Learner) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the optimiser moves, in its order."""
    return [(name, p) for name, p in learner.network.named_parameters() if p.requires_grad]


def _optimizer_state(learner: Learner) -> dict[str, Tensor]:
    state = learner.optimizer.state
    return {
        f"{name}/{slot}": value.detach().cpu().contiguous()
        for name, parameter in _named_parameters(learner)
        for slot, value in state[parameter].items()
    }


def _load_optimizer_state(learner: Learner, tensors: dict[str, Tensor]) -> None:
    slots = {key.rpartition("/")[2] for key in tensors}
    states = {
        index: {slot: tensors[f"{name}/{slot}"] for slot in slots}
        for index, (name, _) in enumerate(_named_parameters(learner))
    }
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": states, "param_groups": groups})


def _rng_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _load_rng_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
