"""Whether all ranks are about to train on the same data, from the same weights, in the same way.

Ranks that differ train without a word: their gradients meet whatever they come from. Others abort in the midst of an
exchange, as its shapes follow from data and settings. So each rank tells the others before the first of these, and a
difference ends the run on every rank. A rank that trains alone compares nothing, and reads nothing for it.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from sys import version_info
from typing import Any

import numpy as np
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from vits_trainer.config.serialization import flatten, to_dict
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.dataset import Clip, PreparedClipDataset
from vits_trainer.data.prepared import PreparedData
from vits_trainer.data.streaming import ShardedData, StreamingClipDataset
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.stragglers import runs
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE
from vits_trainer.utils.errors import UnequalRanksError
from vits_trainer.utils.files import sha256
from vits_trainer.utils.versions import versions

NOT_COMPARED = frozenset(
    (
        # Places: each machine may have its own. What lies there is compared instead.
        "data_dir", "checkpoint_dir", "output_dir", "runs_dir", "model_name", "discriminator_from",
        # What rank 0 alone acts upon.
        "resume_from_checkpoint", "keep_checkpoints", "keep_versions", "report_to", "wandb_checkpoints",
        "wandb_project", "wandb_entity", "wandb_tags", "push_to_hub", "hub_private",
        # What changes nothing in the others' work. Asked to stop by the one, all ranks stop.
        "data_workers", "save_before_s",
    )
)  # fmt: skip
"""Settings that ranks need not share."""
SAMPLED_CLIPS = 256
SAMPLED_GROUPS = 16
"""Row groups of a stream, each of about a minute of speech."""
SAMPLE_S = 5.0
"""No further recording is read for the sample after so many seconds."""
_TEXT_PACKAGES = ("numpy", "num2words", "phonemizer-fork", "espeakng-loader", "uroman")
"""Beside those of every run: what decides into which tokens a text comes, and which clips are drawn."""
_VOICE_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "vocab.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    DISCRIMINATOR_FILE,
)
_MOST_TOLD = 12
_MOST_NAMED = 3
"""Clips, of each rank."""
_TEXT_CHARACTERS = 60


def require_same_run(config: TrainConfig, prepared: PreparedData | ShardedData, runtime: Runtime) -> None:
    """Compares settings and versions, then names, sizes and texts of the clips. Runs on every rank.

    Raises:
        UnequalRanksError: they differ; names what, with the ranks and their values.
    """
    if runtime.world_size == 1:
        return
    settings = {name: value for name, value in flatten(to_dict(config)).items() if name not in NOT_COMPARED}
    settings["precision"] = runtime.precision  # as "auto" comes to on this device
    facts = {f"--{name}": value for name, value in settings.items()}
    _require_same(runtime, facts | _versions(), "Start all ranks with the same settings and the same packages.")
    _require_same_clips(prepared, runtime)


def require_same_start(config: TrainConfig, resume_from: Path | None, runtime: Runtime) -> None:
    """Compares the files that the networks come from. Runs on every rank.

    Args:
        config: of the run.
        resume_from: the checkpoint to go on from, if any.
        runtime: of this process.

    Raises:
        UnequalRanksError: they differ; names the files, with the ranks and their SHA-256, or the Hub's commits.
    """
    if runtime.world_size > 1:
        _require_same(runtime, _start(config, resume_from), "Copy the voice or the checkpoint to all machines again.")


def require_same_recordings(reader: PreparedClipDataset | StreamingClipDataset, seed: int, runtime: Runtime) -> None:
    """Compares the contents of some clips that are drawn by the seed. Runs on every rank.

    Raises:
        UnequalRanksError: they differ; names the first of them, with the ranks and their SHA-256.
        UnreadableShardError: a shard that was drawn cannot be read.
    """
    if runtime.world_size == 1:
        return
    began = time.monotonic()
    own: dict[str, str] = {}
    for name, content in _sample(reader, seed):
        own[name] = content
        if time.monotonic() - began > SAMPLE_S:
            break
    # The order is the same everywhere: a rank with a slow disk got less far in it.
    common = min(runtime.all_gather_object(len(own)))
    _require_same_entries(lambda: list(own.items())[:common], {}, "recordings", runtime)


def differences(found: Sequence[Mapping[str, object]]) -> list[str]:
    """What is not the same everywhere, as ``name: value on rank 0, other value on ranks 1-3``.

    Args:
        found: facts by name, of each rank.
    """
    words = []
    for name in dict.fromkeys(name for facts in found for name in facts):
        ranks_of: dict[str, list[int]] = {}
        for rank, facts in enumerate(found):
            ranks_of.setdefault(str(facts.get(name, "missing")), []).append(rank)
        if len(ranks_of) > 1:
            values = [f"{value} on rank{'s' * (len(ranks) > 1)} {runs(ranks)}" for value, ranks in ranks_of.items()]
            words.append(f"{name}: {', '.join(values)}")
    return words


def _require_same(runtime: Runtime, facts: Mapping[str, object], remedy: str) -> None:
    """Raises :class:`UnequalRanksError` unless ``facts`` are the same everywhere. Runs on every rank."""
    words = differences(runtime.all_gather_object(facts))
    if words:
        more = f"; and {len(words) - _MOST_TOLD} more" if len(words) > _MOST_TOLD else ""
        raise UnequalRanksError(f"The ranks are not the same. {'; '.join(words[:_MOST_TOLD])}{more}. {remedy}")


def _versions() -> dict[str, str]:
    # W&B's own is rank 0's business. Releases of one Python compute the same.
    found = {name: number for name, number in versions().items() if name != "wandb"}
    for name in _TEXT_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    found["python"] = f"{version_info.major}.{version_info.minor}"
    return {f"version of {name}": number for name, number in found.items()}


def _require_same_clips(prepared: PreparedData | ShardedData, runtime: Runtime) -> None:
    """Compares everything that is known of clips without reading them. Runs on every rank."""
    facts = {
        "clips": prepared.clips if isinstance(prepared, ShardedData) else len(prepared.rows),
        "sampling rate": prepared.sampling_rate,
        "speakers in dataset.json": _digest(prepared.summary.get("speaker_clips")),
        "characters in dataset.json": prepared.summary.get("characters"),
    }
    _require_same_entries(lambda: _entries(prepared), facts, "clips", runtime)


def _entries(prepared: PreparedData | ShardedData) -> Iterator[tuple[str, str]]:
    """Each clip, or shard of a stream, and what is known of it."""
    if isinstance(prepared, ShardedData):
        for record in prepared.shards.records:
            groups = f"{record.clips} clips in row groups {_digest(record.groups)}"
            yield record.name, f"{record.bytes} bytes, SHA-256 {record.sha256[:12]}, {groups}, {record.longest_samples}"
        return
    # All at once: a column of a Dataset takes 80 us a row to be gone through.
    columns = prepared.rows[:]
    names, texts, speakers = (columns[name] for name in ("filename", "text", "speaker"))
    for name, text, speaker, size_bytes in zip(names, texts, speakers, prepared.recordings.sizes_bytes, strict=True):
        # Two long texts may begin alike.
        shown = repr(text) if len(text) <= _TEXT_CHARACTERS else f"{text[:_TEXT_CHARACTERS]!r}... {_digest(text)}"
        yield name, f"{shown} ({size_bytes} bytes{f', {speaker}' if speaker else ''})"


def _require_same_entries(
    entries: Callable[[], Iterable[tuple[str, str]]], facts: Mapping[str, object], what: str, runtime: Runtime
) -> None:
    """Compares this rank's entries, by name, with those of the others, and ``facts``, which are told with them.

    By one digest: the entries themselves are kept and sent only where they differ, to be named. Runs on every rank.
    """
    digest = hashlib.sha256()
    for entry in entries():
        digest.update(repr(entry).encode())
    order = digest.hexdigest()[:12]
    if not differences(runtime.all_gather_object({**facts, "": order})):
        return
    own = dict(entries())
    theirs = runtime.on_main_then_broadcast(lambda: own)
    unlike = [name for name in dict.fromkeys((*theirs, *own)) if own.get(name) != theirs.get(name)]
    told = runtime.all_gather_object(unlike[:_MOST_NAMED])
    named = list(dict.fromkeys(name for names in told for name in names))[: 2 * _MOST_NAMED]
    counts = {f"{what} unlike rank 0's": f"{len(unlike)} of {len(theirs)}"}
    values = {name: own.get(name, "missing") for name in named}
    order_alone = {} if named else {f"order of the {what}": order}
    remedy = "Copy the data to all machines again, or put them on a disk that all of them see."
    _require_same(runtime, {**facts, **counts, **values, **order_alone}, remedy)


def _start(config: TrainConfig, resume_from: Path | None) -> dict[str, str]:
    """Digests of what the networks are read from, by names that are the same on every machine."""
    if resume_from is not None:
        files = sorted(path for path in resume_from.rglob("*") if path.is_file())
        return {f"{resume_from.name}/{path.relative_to(resume_from).as_posix()}": sha256(path)[:12] for path in files}
    found: dict[str, str] = {}
    for setting in ("model_name", "discriminator_from"):
        source = getattr(config, setting)
        if source is None:
            continue
        if Path(source).is_file():
            found[f"--{setting}"] = sha256(Path(source))[:12]
        elif Path(source).is_dir():
            files = [Path(source) / name for name in _VOICE_FILES]
            found |= {f"--{setting} {path.name}": sha256(path)[:12] for path in files if path.is_file()}
        else:
            found[f"--{setting} at commit"] = _commit(source)
    return found


def _commit(voice: str) -> str:
    """Which commit a Hub name means on this machine: by one request, where each file of the voice would take one."""
    try:
        path = cached_file(
            voice,
            "config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # neither a folder nor a name of the Hub: told when it is loaded
        return "missing"
    return extract_commit_hash(path, None) or "missing"


def _sample(reader: PreparedClipDataset | StreamingClipDataset, seed: int) -> Iterator[tuple[str, str]]:
    """Names and digests of clips, or row groups of a stream, in an order that is the same on every rank."""
    prepared = reader.prepared
    draw = np.random.default_rng(seed)
    if isinstance(prepared, ShardedData):
        for group in draw.choice(len(prepared.groups), min(SAMPLED_GROUPS, len(prepared.groups)), replace=False):
            record, number = prepared.shards.locate(group)
            columns = prepared.shards.read(group).select(["clip", "audio", "text", "speaker"]).to_pydict()
            yield f"{record.name} row group {number}", _digest(columns)
        return
    for row in draw.choice(len(prepared.rows), min(SAMPLED_CLIPS, len(prepared.rows)), replace=False).tolist():
        clip = reader[row]
        name = str(prepared.rows[row]["filename"])
        if isinstance(clip, Clip):
            yield name, _digest((clip.tokens.tolist(), clip.speaker_id, clip.pcm.tobytes()))
        else:
            yield name, clip.kind


def _digest(value: Any) -> str:
    """Of plain values, the same in every process."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]
