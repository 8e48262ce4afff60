"""Checks that all ranks train on the same data, from the same weights, with the same settings.

Ranks that differ would train without an error, as gradients are averaged whatever they come from; or abort during a
collective, whose shapes follow from data and settings. The ranks are therefore compared before the first of these
collectives, and a difference ends the run on every rank. A single rank compares and reads nothing.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from sys import version_info

from torch import nn
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from vits_trainer.config.serialization import flatten, to_dict
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.dataset import ClipDataset
from vits_trainer.data.training_data import TrainingData
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.stragglers import format_runs
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE
from vits_trainer.utils.errors import DivergedRanksError, UnequalRanksError
from vits_trainer.utils.files import sha256
from vits_trainer.utils.strings import short_digest
from vits_trainer.utils.versions import versions

logger = logging.getLogger(__name__)

NOT_COMPARED = frozenset(
    (
        # Paths may differ between machines. The contents are compared instead.
        "data_dir", "dataset", "checkpoint_dir", "output_dir", "runs_dir", "model_name", "discriminator_from",
        "discriminator_encoder",
        # Used by rank 0 only.
        "resume_from_checkpoint", "keep_checkpoints", "keep_versions", "report_to", "wandb_checkpoints",
        "wandb_project", "wandb_entity", "wandb_tags", "push_to_hub", "hub_private",
        # No effect on the other ranks: if one rank has to stop, all ranks stop.
        "data_workers", "save_before_s",
    )
)  # fmt: skip
"""Settings that may differ between ranks."""
SAMPLE_S = 5.0
"""Seconds after which no further recording is read for the sample."""
_TEXT_PACKAGES = ("numpy", "num2words", "phonemizer-fork", "espeakng-loader", "uroman")
"""In addition to the packages of every run: those that determine the tokens of a text, and which clips are drawn."""
_VOICE_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "vocab.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    DISCRIMINATOR_FILE,
    # of a speech encoder
    "preprocessor_config.json",
    "pytorch_model.bin",
)
_MAX_DIFFERENCES = 12
"""Differences in an error message."""
_MAX_CLIPS_PER_RANK = 3
"""Clips in an error message."""


def require_same_run(config: TrainConfig, data: TrainingData, runtime: Runtime) -> None:
    """Compares settings and versions, then names, sizes and texts of the clips. Runs on every rank.

    Raises:
        UnequalRanksError: they differ; gives each difference with the ranks and their values.
    """
    if runtime.num_processes == 1:
        return
    settings = {name: value for name, value in flatten(to_dict(config)).items() if name not in NOT_COMPARED}
    settings["precision"] = runtime.precision  # "auto" resolved for this device
    facts = {f"--{name}": value for name, value in settings.items()}
    _require_same(runtime, facts | _versions(), "Start all ranks with the same settings and the same packages.")
    _require_same_clips(data, runtime)


def require_same_start(config: TrainConfig, resume_from: Path | None, runtime: Runtime) -> None:
    """Compares the files that the networks are loaded from. Runs on every rank.

    Args:
        config: of the run.
        resume_from: the checkpoint to resume, if any.
        runtime: of this process.

    Raises:
        UnequalRanksError: they differ; gives the files with the ranks and their SHA-256, or the commits on the Hub.
    """
    if runtime.num_processes > 1:
        _require_same(runtime, _start_digests(config, resume_from), "Copy the voice or checkpoint to all machines.")


def require_same_recordings(data: TrainingData, dataset: ClipDataset, seed: int, runtime: Runtime) -> None:
    """Compares the contents of a random sample of clips, drawn from the seed. Runs on every rank.

    Raises:
        UnequalRanksError: they differ; gives the first ones with the ranks and their SHA-256.
        UnreadableShardError: a shard in the sample cannot be read.
    """
    if runtime.num_processes == 1:
        return
    start_s = time.monotonic()
    own: dict[str, str] = {}
    for name, content in data.sample_contents(dataset, seed):
        own[name] = content
        if time.monotonic() - start_s > SAMPLE_S:
            break
    # The order is the same on all ranks; a rank with a slow disk has read fewer clips.
    common = min(runtime.all_gather_object(len(own)))
    _require_same_entries(lambda: list(own.items())[:common], {}, "recordings", runtime)


def require_same_weights(networks: Iterable[nn.Module], runtime: Runtime) -> None:
    """Compares the weights of several ranks at the end of training, and logs their digest. Runs on every rank.

    Raises:
        DivergedRanksError: they differ between the ranks.
    """
    if runtime.num_processes == 1:
        return
    digest = hashlib.sha256()
    for network in networks:
        for parameter in network.parameters():
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    digests = runtime.all_gather_object(digest.hexdigest())
    if len(set(digests)) > 1:
        raise DivergedRanksError(f"The weights differ between the ranks at the end of training ({digests}).")
    logger.info("weights of all %d ranks: sha256 %s", len(digests), digests[0])


def rank_differences(facts_by_rank: Sequence[Mapping[str, object]]) -> list[str]:
    """Returns the facts that differ between ranks, as ``name: value on rank 0, other value on ranks 1-3``.

    Args:
        facts_by_rank: values by name, of each rank.
    """
    descriptions = []
    for name in dict.fromkeys(name for facts in facts_by_rank for name in facts):
        ranks_of: dict[str, list[int]] = {}
        for rank, facts in enumerate(facts_by_rank):
            ranks_of.setdefault(str(facts.get(name, "missing")), []).append(rank)
        if len(ranks_of) > 1:
            values = [
                f"{value} on rank{'s' * (len(ranks) > 1)} {format_runs(ranks)}" for value, ranks in ranks_of.items()
            ]
            descriptions.append(f"{name}: {', '.join(values)}")
    return descriptions


def _require_same(runtime: Runtime, facts: Mapping[str, object], remedy: str) -> None:
    """Raises :class:`UnequalRanksError` unless ``facts`` are the same on all ranks. Runs on every rank."""
    found = rank_differences(runtime.all_gather_object(facts))
    if found:
        more = f"; and {len(found) - _MAX_DIFFERENCES} more" if len(found) > _MAX_DIFFERENCES else ""
        raise UnequalRanksError(f"The ranks differ. {'; '.join(found[:_MAX_DIFFERENCES])}{more}. {remedy}")


def _versions() -> dict[str, str]:
    # W&B is used by rank 0 only. Patch releases of Python compute the same results.
    numbers = {name: number for name, number in versions().items() if name != "wandb"}
    for name in _TEXT_PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "missing"
    numbers["python"] = f"{version_info.major}.{version_info.minor}"
    return {f"version of {name}": number for name, number in numbers.items()}


def _require_same_clips(data: TrainingData, runtime: Runtime) -> None:
    """Compares what is known about the clips without reading their audio. Runs on every rank."""
    facts = {
        "clips": data.clip_count,
        "sampling rate": data.sampling_rate,
        "speakers in dataset.json": short_digest(data.summary.get("speaker_clips")),
        "characters in dataset.json": data.summary.get("characters"),
    }
    _require_same_entries(data.entries, facts, "clips", runtime)


def _require_same_entries(
    entries: Callable[[], Iterable[tuple[str, str]]], facts: Mapping[str, object], what: str, runtime: Runtime
) -> None:
    """Compares entries by name, and ``facts``, over the ranks. Runs on every rank.

    Only a digest is exchanged; the entries themselves are kept and sent only if they differ, for the error message.
    """
    digest = hashlib.sha256()
    for entry in entries():
        digest.update(repr(entry).encode())
    order = digest.hexdigest()[:12]
    if not rank_differences(runtime.all_gather_object({**facts, "": order})):
        return
    own = dict(entries())
    theirs = runtime.on_main_then_broadcast(lambda: own)
    different = [name for name in dict.fromkeys((*theirs, *own)) if own.get(name) != theirs.get(name)]
    by_rank = runtime.all_gather_object(different[:_MAX_CLIPS_PER_RANK])
    reported = list(dict.fromkeys(name for names in by_rank for name in names))[: 2 * _MAX_CLIPS_PER_RANK]
    counts = {f"{what} different from rank 0": f"{len(different)} of {len(theirs)}"}
    values = {name: own.get(name, "missing") for name in reported}
    order_only = {} if reported else {f"order of the {what}": order}
    remedy = "Copy the data to all machines again, or put it on a shared disk."
    _require_same(runtime, {**facts, **counts, **values, **order_only}, remedy)


def _start_digests(config: TrainConfig, resume_from: Path | None) -> dict[str, str]:
    """Returns digests of the files that the networks are loaded from, by names that are the same on every machine."""
    if resume_from is not None:
        files = sorted(path for path in resume_from.rglob("*") if path.is_file())
        return {f"{resume_from.name}/{path.relative_to(resume_from).as_posix()}": sha256(path)[:12] for path in files}
    digests: dict[str, str] = {}
    for setting in ("model_name", "discriminator_from", "discriminator_encoder"):
        source = getattr(config, setting)
        if source is None:
            continue
        if Path(source).is_file():
            digests[f"--{setting}"] = sha256(Path(source))[:12]
        elif Path(source).is_dir():
            files = [Path(source) / name for name in _VOICE_FILES]
            digests |= {f"--{setting} {path.name}": sha256(path)[:12] for path in files if path.is_file()}
        else:
            digests[f"--{setting} at commit"] = _commit(source)
    return digests


def _commit(voice: str) -> str:
    """Returns the commit that a Hub name resolves to on this machine, by a single request instead of one per file."""
    try:
        path = cached_file(
            voice,
            "config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # neither a folder nor a name on the Hub: loading it raises the error
        return "missing"
    return extract_commit_hash(path, None) or "missing"
