"""One round of learning from corrections: prepare, mix, train, decide."""

import csv
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vits_trainer.config.feedback import FeedbackConfig
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.data.prepared import PreparedData, is_prepared, open_prepared, require_rate, train_validation_split
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.feedback import acceptance, replay_mix
from vits_trainer.feedback.acceptance import AcceptanceDecision
from vits_trainer.feedback.replay_mix import CorrectionFiles
from vits_trainer.feedback.training_process import WORK, work_folder
from vits_trainer.models import voice_versions
from vits_trainer.models.pretrained import audio_spec, read_config
from vits_trainer.training import run as training_run
from vits_trainer.utils.errors import ConfigError, DataError, RefusedVoiceError
from vits_trainer.utils.files import atomic_write, followed, is_ours, mark, move_aside, remove
from vits_trainer.utils.strings import csv_cell

logger = logging.getLogger("vits_trainer")


def learn_corrections(config: FeedbackConfig) -> int:
    """Learns what is new, judges the voice before and after, and puts the new one into place or refuses it.

    Raises:
        ConfigError: several processes were started, something else than a voice would be lost, or there is no version
            to roll back to.
        DataError: there is no correction, the new voice would be written over the one that is served, or another
            process is at work there.
        RefusedVoiceError: the new voice is not better.
    """
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("Corrections are few: train_feedback runs in one process, without accelerate launch.")
    served = Path(config.model_dir)
    if config.rollback:
        with voice_versions.exclusive(served):
            gone, back = voice_versions.roll_back(served)
        kept = voice_versions.versions_dir(served) / f"rolled-back-{gone}"
        print(f"{served}: version {back} is served again; kept is {kept}")
        return 0
    _require_places(config)
    # The output too, until the verdict: what is judged must be what was trained.
    with voice_versions.exclusive(served), voice_versions.exclusive(Path(config.output_dir)):
        return _learn(config, served)


def _require_places(config: FeedbackConfig) -> None:
    """Refuses places where something else than a voice, or than an earlier work folder, would be lost."""
    served, output, work = Path(config.model_dir), Path(config.output_dir), work_folder(config.output_dir)
    if followed(output) == followed(served):
        raise DataError(f"--output_dir {output} is the voice that is served. Name another folder for the new voice.")
    begins_with_base = not (served / "config.json").is_file() and Path(config.base_model).exists()
    kept = {
        "--feedback_dir": config.feedback_dir,
        "--data_dir": config.data_dir,
        "--base_model": config.base_model if begins_with_base else None,
    }
    voice_versions.check_voice_destination(served, "model_dir", {**kept, "--output_dir": output})
    voice_versions.check_voice_destination(output, "output_dir", {**kept, "--model_dir": served})
    held = voice_versions.protected_path_inside(followed(work), {**kept, "--model_dir": served})
    if held or (os.path.lexists(work) and not is_ours(work, WORK)):
        raise ConfigError(
            f"{work}, where train_feedback works (--output_dir with _work behind it), {held or 'is not its own'}. "
            "Nothing was changed: give another --output_dir."
        )


def _learn(config: FeedbackConfig, served: Path) -> int:
    corrections = _corrections(config)
    learnt = voice_versions.read_history(served)
    new = replay_mix.not_yet_learnt(corrections, learnt.corrections)
    if not new:
        print(f"Nothing new: {served} has learnt all {len(corrections)} corrections of {config.feedback_dir}.")
        return 0
    old = [correction for correction in corrections if correction not in new]
    voice = str(served) if (served / "config.json").is_file() else config.base_model
    spec = audio_spec(read_config(voice))
    work = work_folder(config.output_dir)
    if work.exists():
        remove(work, WORK)
    work.mkdir(parents=True, exist_ok=True)
    mark(work, WORK)
    to_learn = _prepared(new, work / "corrections", spec.sampling_rate)
    known = _known_clips(config)
    if known is not None:
        require_rate(known[0], spec)
    replayable = [] if known is None else [(known[0], known[1])]
    if old:
        earlier = _prepared(old, work / "learnt_before", spec.sampling_rate)
        replayable.append((earlier, list(range(len(earlier.rows)))))
    replayed = replay_mix.write_replay_mix(
        work / "mix", to_learn, replayable, config.replay_fraction, config.epochs, config.seed
    )
    logger.info(
        "%d new corrections, %d learnt before; %d passes, with %d clips replayed.",
        len(to_learn.rows), len(old), config.epochs, replayed,
    )  # fmt: skip
    before = _judged(voice, to_learn, known, config)
    code = training_run.train(_training(config, voice, work))
    if code:
        return code
    after = _judged(config.output_dir, to_learn, known, config)
    verdict = AcceptanceDecision(
        acceptance.mel_changes(before["corrections"], after["corrections"]),
        acceptance.mel_changes(before["held_out"], after["held_out"]) if known is not None and known[2] else None,
        config.max_regression,
    )
    rejected = _rejected(work / "corrections")
    learnt_now = {c.name: c.sha256 for c in new if csv_cell(c.name) not in rejected}
    return _decide(config, served, verdict, learnt, learnt_now)


def _decide(
    config: FeedbackConfig,
    served: Path,
    verdict: AcceptanceDecision,
    learnt: voice_versions.VoiceHistory,
    learnt_now: Mapping[str, str],
) -> int:
    """Puts the new voice into place, or aside. Raises :class:`RefusedVoiceError`."""
    output, work = Path(config.output_dir), work_folder(config.output_dir)
    version = voice_versions.next_version(served)
    record = verdict.to_dict(list(learnt_now), version)
    atomic_write(work / "verdict.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if verdict.reasons_to_reject:
        refused = work / "refused"
        if refused.exists():  # somebody has put a file there
            move_aside(refused, "earlier")
        voice_versions.move_voice(output, refused)
        raise RefusedVoiceError(f"{verdict} {served} is as it was; the refused voice is {refused}.")
    told = {name: record[name] for name in ("words", "learnt", "version")}
    now = voice_versions.VoiceHistory(version, {**learnt.corrections, **learnt_now}, (*learnt.verdicts, told))
    with voice_versions.replace_voice(served, config.keep_versions) as folder:
        voice_versions.copy_voice(output, folder)
        voice_versions.write_history(folder, now)
    print(f"{verdict}\n{served} is version {version} now. Back to the one before: train_feedback --rollback")
    return 0


def _corrections(config: FeedbackConfig) -> list[CorrectionFiles]:
    folder = Path(config.feedback_dir)
    corrections = replay_mix.find_corrections(folder) if folder.is_dir() else []
    if not any(file.suffix == ".txt" for correction in corrections for file in correction.files):
        raise DataError(
            f"{folder} holds no correction. Each is two files: NAME.wav (what to say) and NAME.txt (its text)."
        )
    return corrections


def _prepared(corrections: Sequence[CorrectionFiles], folder: Path, rate_hz: int) -> PreparedData:
    """Checked like any clips."""
    source = folder.with_name(f"{folder.name}_source")
    replay_mix.copy_corrections(corrections, source)
    prepare(PrepareConfig(dataset=str(source), output_dir=str(folder), target_sr=rate_hz))
    return open_prepared(folder)


def _rejected(folder: Path) -> set[str]:
    """As rejected.csv has their names."""
    with (folder / "rejected.csv").open(encoding="utf-8", newline="") as file:
        return {row["clip"] for row in csv.DictReader(file)}


def _known_clips(config: FeedbackConfig) -> tuple[PreparedData, list[int], list[int]] | None:
    """What the voice was trained on, and the rows that were trained on and held out; None where that is not here."""
    folder = Path(config.data_dir or Path(config.feedback_dir).resolve().parent)
    if config.data_dir is None and not is_prepared(folder):
        logger.warning(
            "NO TRAINING CLIPS: nothing is replayed, and what the voice forgets is NOT SEEN. Give --data_dir, the "
            "folder that it was trained on."
        )
        return None
    prepared = open_prepared(folder)
    return prepared, *train_validation_split(
        prepared, config.validation_fraction, config.validation_max_clips, config.seed
    )


def _judged(
    voice: str, to_learn: PreparedData, known: tuple[PreparedData, list[int], list[int]] | None, config: FeedbackConfig
) -> dict[str, dict[str, float]]:
    runtime = Runtime(config.precision, 1)
    asked = {"corrections": (to_learn, list(range(len(to_learn.rows))))}
    if known is not None and known[2]:
        asked["held_out"] = (known[0], known[2])
    found = {name: acceptance.measure_mel(voice, *which, runtime, config.seed) for name, which in asked.items()}
    runtime.close()
    return found


def _training(config: FeedbackConfig, voice: str, work: Path) -> TrainConfig:
    return TrainConfig(
        data_dir=str(work / "mix"),
        checkpoint_dir=str(work / "checkpoints"),
        output_dir=config.output_dir,
        runs_dir=str(work / "runs"),
        model_name=voice,
        run_name=config.run_name,
        batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=config.learning_rate,
        epochs=1,  # the mix holds every pass
        precision=config.precision,
        seed=config.seed,
        keep_versions=config.keep_versions,
        # All corrections are learnt from; the first pass is what its curves are of. The verdict has clips of its own.
        validation_fraction=0,
        validate_on_training_clips=True,
        report_to=config.report_to,
        wandb_project=config.wandb_project,
        wandb_entity=config.wandb_entity,
        wandb_tags=config.wandb_tags,
    )
