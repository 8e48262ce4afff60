"""One round of learning from corrections: prepare them, mix in known clips, train, decide."""

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import VitsConfig

from vits_trainer.config.feedback import FeedbackConfig
from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.selection import ClipSelection
from vits_trainer.config.train import LossWeights, TrainConfig
from vits_trainer.data.clip_accounting import Incident
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.data.prepared import (
    PreparedData,
    is_prepared,
    open_prepared,
    open_selected,
    require_rate,
    train_validation_split,
)
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.feedback import replay_mix
from vits_trainer.feedback.decision import Changes, Decision, ErrorRateChange, MetricChange
from vits_trainer.feedback.intelligibility import ListeningTest
from vits_trainer.feedback.replay_mix import CorrectionFiles
from vits_trainer.feedback.speakers import correction_speakers
from vits_trainer.feedback.training_process import WORK, verdict_file, work_folder
from vits_trainer.models import pretrained, voice_versions
from vits_trainer.models.generator import Generator
from vits_trainer.text.tokenizer import VoiceTokenizer, load_tokenizer
from vits_trainer.training.objective import Objective
from vits_trainer.training.run import train
from vits_trainer.training.validation import Validation
from vits_trainer.utils.errors import ConfigError, DataError, RefusedVoiceError
from vits_trainer.utils.files import followed, is_ours, mark, move_aside, remove
from vits_trainer.utils.strings import counted, csv_cell, join_speakers

logger = logging.getLogger(__name__)

_MOST_SEEDS = 5
_ENOUGH_PASSES = 20
"""Few clips are judged under several seeds each, until there are so many passes."""

Metrics = Mapping[str, Sequence[Sequence[float]]]
"""By metric: the mel L1 of each clip under each seed."""


def learn_corrections(config: FeedbackConfig) -> int:
    """Trains on the new corrections, and replaces the served voice if the new one is better.

    Returns:
        The exit code: 0, or that of a training that was stopped.

    Raises:
        ConfigError: several processes were started, a folder would be overwritten that is no voice, or there is no
            version to roll back to.
        DataError: there is no correction, the output is the served voice, or another process works there.
        RefusedVoiceError: the new voice is not better.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("Corrections are few: train_feedback runs in one process, without accelerate launch.")
    served = Path(config.model_dir)
    if config.rollback:
        return _roll_back(served)
    _require_places(config)
    # The output too, until the decision: the voice that is measured must be the one that was trained.
    with voice_versions.exclusive(served), voice_versions.exclusive(Path(config.output_dir)):
        return _learn(config, served)


def _roll_back(served: Path) -> int:
    with voice_versions.exclusive(served):
        gone, back = voice_versions.roll_back(served)
    kept = voice_versions.versions_dir(served) / f"rolled-back-{gone}"
    print(f"{served}: version {back} is served again; version {gone} is kept in {kept}")
    return 0


def _require_places(config: FeedbackConfig) -> None:
    """Rejects folders that hold something else than a voice, or than an earlier work folder."""
    served, output, work = Path(config.model_dir), Path(config.output_dir), work_folder(config.output_dir)
    if followed(output) == followed(served):
        raise DataError(f"--output_dir {output} is the served voice. Choose another folder for the new voice.")
    starts_from_base = not (served / "config.json").is_file() and Path(config.base_model).exists()
    kept = {
        "--feedback_dir": config.feedback_dir,
        "--data_dir": config.data_dir,
        "--base_model": config.base_model if starts_from_base else None,
    }
    voice_versions.check_voice_destination(served, "model_dir", {**kept, "--output_dir": output})
    voice_versions.check_voice_destination(output, "output_dir", {**kept, "--model_dir": served})
    inside = voice_versions.protected_path_inside(followed(work), {**kept, "--model_dir": served})
    if inside or (os.path.lexists(work) and not is_ours(work, WORK)):
        raise ConfigError(
            f"{work}, the work folder of train_feedback (--output_dir with _work appended), "
            f"{inside or 'was not made by it'}. Nothing was changed: choose another --output_dir."
        )


@dataclass(frozen=True)
class _KnownClips:
    """What the voice was trained on."""

    prepared: PreparedData
    training_rows: Sequence[int]
    validation_rows: Sequence[int]
    selection: ClipSelection


@dataclass(frozen=True)
class _Voice:
    """The voice that is corrected, and how it reads clips."""

    path: str
    config: VitsConfig
    tokenizer: VoiceTokenizer

    @property
    def spec(self) -> AudioSpec:
        return pretrained.audio_spec(self.config)

    def dataset(self, prepared: PreparedData) -> PreparedClipDataset:
        return PreparedClipDataset(
            prepared, self.tokenizer, self.spec, pretrained.speaker_ids(self.config, prepared.speakers)
        )


def _learn(config: FeedbackConfig, served: Path) -> int:
    corrections = _find_corrections(config)
    history = voice_versions.read_history(served)
    new = replay_mix.not_yet_learnt(corrections, history.corrections)
    if not new:
        print(f"Nothing new: {served} has learnt all corrections of {config.feedback_dir} ({len(corrections)}).")
        return 0
    old = [correction for correction in corrections if correction not in new]
    path = str(served) if (served / "config.json").is_file() else config.base_model
    voice = _Voice(path, pretrained.read_config(path), load_tokenizer(path))
    speaker_of = correction_speakers(corrections, path, voice.config, config.speaker)
    work = _new_work_folder(config)
    to_learn = _prepare(new, work / "corrections", voice, speaker_of)
    known = _known_clips(config, voice)
    replayable: list[tuple[PreparedData, Sequence[int]]] = []
    if known is not None:
        replayable.append((known.prepared, known.training_rows))
    if old:
        earlier = _prepare(old, work / "learnt_before", voice, speaker_of)
        replayable.append((earlier, range(len(earlier.rows))))
    training = _training_config(config, voice.path, work)
    selection = None if known is None else known.selection
    data = replay_mix.replay_data(training, to_learn, replayable, config.replay_fraction, selection)
    logger.info(
        "%s, %d learnt before; %s, each with %s.",
        counted(len(to_learn.rows), "new correction"), len(old), counted(config.epochs, "epoch"),
        counted(data.summary["replayed"], "replayed clip"),
    )  # fmt: skip
    before = _measure(voice.path, to_learn, known, config)
    listening = _listening_test(config, voice, known)
    heard_before = None if listening is None else listening.error_rates(voice.path)
    result = train(training, data)
    if result.voice is None:
        return result.exit_code
    after = _measure(config.output_dir, to_learn, known, config)
    understood = None
    if listening is not None and heard_before is not None:
        understood = ErrorRateChange.from_pairs(heard_before, listening.error_rates(config.output_dir))
    changes = {clips: _changes(before[clips], after[clips]) for clips in before}
    rejected = _rejected_names(work / "corrections")
    learnt = {c.name: c.sha256 for c in new if csv_cell(c.name) not in rejected}
    decision = Decision.from_metrics(
        changes["corrections"],
        changes.get("held_out"),
        config.max_regression,
        list(learnt),
        voice_versions.next_version(served),
        understood,
    )
    decision.write(verdict_file(config.output_dir))
    if decision.accepted:
        _install(config, served, decision, history, learnt)
        return 0
    refused = work / "refused"
    if refused.exists():  # not by train_feedback: the work folder is new
        move_aside(refused, "earlier")
    voice_versions.move_voice(Path(config.output_dir), refused)
    raise RefusedVoiceError(f"{decision.message} {served} is unchanged; the rejected voice is {refused}.")


def _install(
    config: FeedbackConfig,
    served: Path,
    decision: Decision,
    history: voice_versions.VoiceHistory,
    learnt: Mapping[str, str],
) -> None:
    """Replaces the served voice; the old one becomes a version."""
    record = decision.to_dict()
    verdict = {name: record[name] for name in ("words", "learnt", "version")}
    version = record["version"]
    now = voice_versions.VoiceHistory(version, {**history.corrections, **learnt}, (*history.verdicts, verdict))
    with voice_versions.replace_voice(served, config.keep_versions) as folder:
        voice_versions.copy_voice(Path(config.output_dir), folder)
        voice_versions.write_history(folder, now)
    print(f"{decision.message}\n{served} is version {version} now. To undo: train_feedback --rollback")


def _find_corrections(config: FeedbackConfig) -> list[CorrectionFiles]:
    folder = Path(config.feedback_dir)
    corrections = replay_mix.find_corrections(folder) if folder.is_dir() else []
    if not any(file.suffix.casefold() == ".txt" for correction in corrections for file in correction.files):
        raise DataError(
            f"{folder} holds no correction. Each is two files: NAME.wav (how it should sound) and NAME.txt (its text)."
        )
    return corrections


def _new_work_folder(config: FeedbackConfig) -> Path:
    work = work_folder(config.output_dir)
    if work.exists():
        remove(work, WORK)
    work.mkdir(parents=True, exist_ok=True)
    mark(work, WORK)
    return work


def _prepare(
    corrections: Sequence[CorrectionFiles], folder: Path, voice: _Voice, speaker_of: Mapping[str, str]
) -> PreparedData:
    """Checks and resamples corrections as any clips, and leaves out those that the voice cannot read.

    rejected.csv names all that are left out.

    Raises:
        DataError: none is left.
    """
    source = folder.with_name(f"{folder.name}_source")
    replay_mix.copy_corrections(corrections, source)
    rate_hz = voice.spec.sampling_rate
    # Users correct one sentence again and again.
    prepare(PrepareConfig(dataset=str(source), output_dir=str(folder), target_sr=rate_hz, check_texts=False))
    prepared = open_prepared(folder)
    rejected = _rejected_names(folder)
    names = [correction.name for correction in corrections if csv_cell(correction.name) not in rejected]
    if speaker_of:
        prepared = replace(prepared, rows=replace(prepared.rows, speaker=[speaker_of[name] for name in names]))
    incidents = _unreadable(voice, prepared, range(len(prepared.rows)))
    if not incidents:
        return prepared
    lines = {csv_cell(names[row]): incident for row, incident in incidents.items()}
    with (folder / "rejected.csv").open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows((name, *_reason(one)) for name, one in lines.items())
    shown = "; ".join(f"{name}: {one.kind} ({one.message})" for name, one in lines.items())
    if len(incidents) == len(prepared.rows):
        raise DataError(
            f"The voice can read none of the corrections: {shown}. Correct their texts, or record them again."
        )
    logger.warning("The voice cannot read %s, left out: %s", counted(len(incidents), "correction"), shown)
    return prepared.subset([row for row in range(len(prepared.rows)) if row not in incidents])


def _unreadable(voice: _Voice, prepared: PreparedData, rows: Sequence[int]) -> dict[int, Incident]:
    """Reads clips as training will: tokens depend on the voice. Returns why rows cannot be used."""
    dataset = voice.dataset(prepared)
    return {row: record for row in rows if isinstance(record := dataset.read(row), Incident)}


def _reason(incident: Incident) -> tuple[str, str]:
    return incident.kind, csv_cell(incident.message)


def _rejected_names(folder: Path) -> set[str]:
    """Names of rejected clips as rejected.csv spells them."""
    with (folder / "rejected.csv").open(encoding="utf-8", newline="") as file:
        return {row["clip"] for row in csv.DictReader(file)}


def _known_clips(config: FeedbackConfig, voice: _Voice) -> _KnownClips | None:
    """Returns what the voice was trained on; None if it is not on this machine.

    Raises:
        ConfigError: the voice does not say which speakers of the folder it was trained on.
    """
    folder = Path(config.data_dir or Path(config.feedback_dir).resolve().parent)
    if config.data_dir is None and not is_prepared(folder):
        logger.warning(
            "NO TRAINING CLIPS: nothing is replayed, and regressions are NOT DETECTED. Set --data_dir to the folder "
            "that the voice was trained on."
        )
        return None
    stored = None if config.only_speakers else voice_versions.read_selection(Path(voice.path))
    selection = stored or ClipSelection.from_config(config)
    names = pretrained.speaker_names(voice.config)
    prepared = open_selected(folder, selection, names_speaker=bool(names))
    require_rate(prepared, voice.spec)
    if stored is None and not config.only_speakers:
        prepared = _of_voice(prepared, names)
    split = train_validation_split(
        prepared, selection.validation_fraction, selection.validation_max_clips, selection.seed
    )
    unreadable = _unreadable(voice, prepared, split[1])
    if unreadable:
        examples = "; ".join(map(str, list(unreadable.values())[:5]))
        count = counted(len(unreadable), "held-out clip")
        logger.warning("The voice cannot read %s, left out: %s", count, examples)
    return _KnownClips(prepared, split[0], [row for row in split[1] if row not in unreadable], selection)


def _of_voice(prepared: PreparedData, names: Sequence[str]) -> PreparedData:
    """Selects the clips of the voice's speakers."""
    speakers = set(prepared.rows.speaker)
    if not names and len(speakers) > 1:
        raise ConfigError(
            f"The voice has one speaker, {prepared.root} has {len(speakers)}: {join_speakers(sorted(speakers))}. Set "
            "--only_speakers to the speaker that the voice was trained on."
        )
    if not names or speakers <= set(names):
        return prepared
    rows = [row for row, speaker in enumerate(prepared.rows.speaker) if speaker in names]
    if not rows:
        raise ConfigError(
            f"{prepared.root} has no clip of the voice's speakers ({join_speakers(names)}). Set --data_dir to the "
            "folder that the voice was trained on."
        )
    return prepared.subset(rows)


def _listening_test(config: FeedbackConfig, voice: _Voice, known: _KnownClips | None) -> ListeningTest | None:
    held_out: list[tuple[str, str]] = []
    if known is not None:
        rows = known.prepared.rows
        held_out = [(rows.text[row], rows.speaker[row]) for row in known.validation_rows]
    return ListeningTest.create(config.asr, voice.tokenizer.language, voice.spec.sampling_rate, held_out, config.seed)


def _measure(
    voice: str, to_learn: PreparedData, known: _KnownClips | None, config: FeedbackConfig
) -> dict[str, Metrics]:
    """Metrics of a voice on the corrections, and on clips that were not trained on if there are any."""
    runtime = Runtime(config.precision, 1)
    metrics = {"corrections": measure_mel(voice, to_learn, range(len(to_learn.rows)), runtime, config.seed)}
    if known is not None and known.validation_rows:
        metrics["held_out"] = measure_mel(voice, known.prepared, known.validation_rows, runtime, config.seed)
    runtime.close()
    return metrics


def measure_mel(voice: str, prepared: PreparedData, rows: Sequence[int], runtime: Runtime, seed: int) -> Metrics:
    """Returns a voice's mel L1 on whole clips, with the same noises each time.

    Returns:
        ``mel``: decoded from the recording; ``mel_from_text``: from its text, along the recording's alignment. Of each
        clip under each seed, (clips, seeds).
    """
    model = pretrained.load_model(voice)
    spec = pretrained.audio_spec(model.config)
    speaker_ids = pretrained.speaker_ids(model.config, prepared.speakers)
    dataset = PreparedClipDataset(prepared, load_tokenizer(voice), spec, speaker_ids)
    longest = max(prepared.frames(rows, spec.hop))
    objective = Objective("mel", LossWeights(), spec, longest)
    generator = Generator(model.to(runtime.device), "posterior", longest)
    by_seed: dict[str, list[list[float]]] = {"mel": [], "mel_from_text": []}
    for number in range(min(_MOST_SEEDS, -(-_ENOUGH_PASSES // len(rows)))):
        validation = Validation(runtime, objective, dataset, rows, seed + number, segment_frames=longest)
        results = {"mel": validation.run(generator, None), "mel_from_text": validation.run_from_text(generator)}
        for name, result in results.items():
            by_seed[name].append([clip.total / clip.frames for clip in result.clips])
    return {name: [list(clip) for clip in zip(*values, strict=True)] for name, values in by_seed.items()}


def _changes(before: Metrics, after: Metrics) -> Changes:
    return {name: MetricChange.from_pairs(before[name], after[name]) for name in before}


def _training_config(config: FeedbackConfig, voice: str, work: Path) -> TrainConfig:
    return TrainConfig(
        data_dir=str(work / "corrections"),
        checkpoint_dir=str(work / "checkpoints"),
        output_dir=config.output_dir,
        runs_dir=str(work / "runs"),
        model_name=voice,
        run_name=config.run_name,
        batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=config.learning_rate,
        epochs=config.epochs,
        precision=config.precision,
        seed=config.seed,
        keep_versions=config.keep_versions,
        validation_fraction=0,
        validate_on_training_clips=True,
        best_metric="mel",  # the last update is exported
        report_to=config.report_to,
        wandb_project=config.wandb_project,
        wandb_entity=config.wandb_entity,
        wandb_tags=config.wandb_tags,
    )
