"""A training run from its configuration to the saved voice."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import VitsModel

from vits_trainer.config.framing import AudioSpec, check_segment
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.clip_accounting import ClipAccounting
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.data.prepared import (
    PreparedData,
    open_prepared,
    require_rate,
    select_speakers,
    train_validation_split,
    with_speaker_name,
)
from vits_trainer.data.sampler import BucketBatchSampler
from vits_trainer.data.speaker_sampling import SpeakerTemperatureSampler
from vits_trainer.data.streaming import ShardedData, StreamingClipDataset, TrainedNames, open_stream
from vits_trainer.data.streaming_sampler import StreamingBatchSampler
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.shutdown import ShutdownRequest
from vits_trainer.distributed.stragglers import describe_topology
from vits_trainer.models import extension, initialization, pretrained, pretrained_discriminator
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, Discriminator, load_discriminator
from vits_trainer.models.extension import add_speakers
from vits_trainer.models.generator import Generator
from vits_trainer.models.voice_versions import check_voice_destination
from vits_trainer.models.voice_versions import exclusive as claimed_voice
from vits_trainer.text import vocabulary
from vits_trainer.text.languages import espeak_name
from vits_trainer.text.tokenizer import VoiceTokenizer, build_tokenizer, load_tokenizer
from vits_trainer.text.vocabulary import MissingCharacter
from vits_trainer.tracking import hub, model_card, run_folder
from vits_trainer.tracking.model_card import ModelCardInfo
from vits_trainer.tracking.tracker import RunOutcome, Tracker
from vits_trainer.training import agreement, checkpoint, resume
from vits_trainer.training.checkpoint import CheckpointManager
from vits_trainer.training.meter import format_duration
from vits_trainer.training.objective import Objective
from vits_trainer.training.plan import TrainingPlan
from vits_trainer.training.trainer import Trainer
from vits_trainer.training.validation import Validation
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import followed
from vits_trainer.utils.logging import log_to_console
from vits_trainer.utils.versions import versions

logger = logging.getLogger("vits_trainer")

DONE = "done"


def train(config: TrainConfig) -> int:
    """Trains, exports, and returns 0; or the code of what stopped it before. Runs on every rank."""
    data = _data(config)
    runtime = Runtime(config.precision, config.gradient_accumulation_steps, config.deterministic, config.rank_timeout_s)
    log_to_console(runtime.is_main_process)
    with runtime.report_failure_to_peers():
        agreement.require_same_run(config, data.prepared, runtime)
        _refuse_dropped_layers(config, runtime)
        # Only the main rank's machine need be logged in.
        runtime.on_main_then_broadcast(lambda: hub.check_can_push(config))
        with runtime.on_main(lambda: _claimed(config)):
            outcome = _train(config, data, runtime)
    is_main = runtime.is_main_process
    runtime.close()
    # When all is recorded and no other rank waits: an upload may take long, or fail.
    if config.push_to_hub and is_main and outcome.status == DONE:
        address = hub.push(Path(config.output_dir), config.push_to_hub, config.hub_private)
        logger.info("The voice on the Hub: %s", address)
    return outcome.exit_code


@contextmanager
def _claimed(config: TrainConfig) -> Iterator[None]:
    """Inside, no other process writes to the folders of the checkpoints and of the voice."""
    output, start = Path(config.output_dir), config.model_name
    kept = {
        "--data_dir": config.data_dir if Path(config.data_dir).exists() else None,
        "--checkpoint_dir": config.checkpoint_dir,
        "--runs_dir": _runs_dir(config),
        # Where the new voice takes the place of the very one that it began with, that one becomes a version.
        "--model_name": start if start and Path(start).exists() and followed(Path(start)) != followed(output) else None,
    }
    check_voice_destination(output, "output_dir", kept)
    with checkpoint.exclusive_lock(Path(config.checkpoint_dir)), claimed_voice(output):
        yield


def _train(config: TrainConfig, data: "_Data", runtime: Runtime) -> RunOutcome:
    """Builds the parts, trains, exports. Runs on every rank."""
    prepared, rows, held_out = data
    resume_from = runtime.on_main_then_broadcast(lambda: resume.select_checkpoint(config))
    agreement.require_same_start(config, resume_from, runtime)
    if resume_from is not None:
        resume.keep_threads(checkpoint.read_record(resume_from), runtime)
    torch.manual_seed(config.seed)  # fresh weights, equal on all ranks; what updates draw has seeds of its own
    model, tokenizer = _voice(config, prepared, resume_from)
    spec = pretrained.audio_spec(model.config)
    require_rate(prepared, spec)
    check_segment(config.segment_frames, spec.sampling_rate, spec.n_fft, spec.hop)
    objective = Objective(config.objective, config.loss_weights, spec, config.segment_frames)
    discriminator, fresh_judges = _discriminator(config, resume_from) if objective.adversarial else (None, False)
    generator = Generator(model, "posterior" if objective.adversarial else "prior", config.segment_frames)
    initialization.freeze(model, config.frozen_parts)

    balance = _balance(config, data)
    order = _order(config, data, spec, runtime.world_size, balance)
    kept = {} if resume_from is None else resume.restored_plan(checkpoint.read_record(resume_from), config)
    plan = TrainingPlan.from_config(config, order, len(held_out), fresh_judges, kept=kept)
    # Of a stream without dataset.json, nobody reads all shards for a voice of one speaker.
    speakers = prepared.speakers if model.config.num_speakers > 1 else []
    reader = _reader(prepared, tokenizer, spec, pretrained.speaker_ids(model.config, speakers))
    agreement.require_same_recordings(reader, config.seed, runtime)
    validation = Validation(runtime, objective, reader, held_out, config.batch_size, config.seed)
    name = _run_name(config, resume_from, runtime)
    now = resume.run_fingerprint(name, config, prepared, rows, held_out, order, runtime)
    changes = [] if resume_from is None else resume.diff_fingerprint(resume_from, now)
    checkpoints = CheckpointManager(Path(config.checkpoint_dir), config.keep_checkpoints, runtime, now, config)
    run_dir = _runs_dir(config) / name
    facts = {"plan": asdict(plan), "versions": versions(), "machine": runtime.describe(), "data": prepared.summary}
    resumed_at = None if resume_from is None else int(checkpoint.read_record(resume_from)["state"]["update"])
    interruption = ShutdownRequest(run_dir / "STOP", config.save_before_s)
    # Signals are noted up to the end, as a launcher sends one where another rank has failed: this one must still tell.
    tracked = Tracker(run_dir, config, facts, runtime.is_main_process, resumed_at)
    with interruption, runtime.on_main(lambda: run_folder.exclusive_run(run_dir)), tracked as tracker:
        trainer = Trainer(
            config, plan, runtime, objective, generator, discriminator, tokenizer, order, reader,
            _accounts(config, data, order), validation, checkpoints, tracker, interruption,
        )  # fmt: skip
        runtime.on_main_then_broadcast(lambda: resume.set_aside_newer(checkpoints.directory, resume_from))
        if resume_from is not None:
            trainer.resume(resume_from)
        trainer.drop_unreadable_validation_clips()
        seconds_per_update = trainer.dry_run()
        trainer.plan = TrainingPlan.from_config(config, order, len(held_out), fresh_judges, seconds_per_update, kept)
        if runtime.is_main_process:
            _log_introduction(
                trainer, seconds_per_update, config, _missing(prepared, tokenizer), balance, resume_from, changes
            )
        if trainer.fit():
            tracker.outcome = RunOutcome(DONE, trainer.state.update)
            if runtime.is_main_process:
                update = _load_final_weights(trainer, model, discriminator)
                pretrained.export(model, tokenizer, discriminator, Path(config.output_dir), config.keep_versions)
                story = ModelCardInfo(
                    config=config,
                    data=prepared.summary,
                    training_clips=order.clips,
                    speakers=tuple(pretrained.speaker_names(model.config)),
                    phonemes_of=espeak_name(tokenizer.language) if tokenizer.phonemize else None,
                    sampling_rate=spec.sampling_rate,
                    update=update,
                    versions=versions(),
                    run_dir=tracker.run_dir,
                )
                model_card.write_model_card(Path(config.output_dir), story)
                logger.info("The voice: %s   The run: %s", config.output_dir, tracker.run_dir)
    return tracker.outcome


def _load_final_weights(trainer: Trainer, model: VitsModel, discriminator: Discriminator | None) -> int:
    """Puts the weights that the run is for into the networks: the averaged ones, and with patience the best update's.

    Returns:
        The update that they are of.
    """
    trainer.apply_ema()
    if not trainer.config.patience:
        return trainer.state.update
    best = trainer.checkpoints.directory / f"checkpoint-{trainer.state.best_update}"
    if not best.is_dir():  # a run that was resumed from another folder has its best there
        logger.warning("The best update's %s is not there: the voice is that of the last one.", best)
        return trainer.state.update
    checkpoint.load_networks(best, model, discriminator)
    checkpoint.load_average(best, model)
    logger.info("The voice is that of the best update, %s.", best)
    return trainer.state.best_update


def _refuse_dropped_layers(config: TrainConfig, runtime: Runtime) -> None:
    if config.layerdrop and runtime.world_size > 1:
        raise ConfigError(
            f"--layerdrop {config.layerdrop} with {runtime.world_size} processes: a layer that one of them leaves out "
            "has no gradient to share. Leave it at 0, as VITS has it."
        )


class _Data(NamedTuple):
    """What to train on."""

    prepared: PreparedData | ShardedData
    rows: list[int]
    """To train on; of a stream, all that are not held out."""
    held_out: list[int]


def _data(config: TrainConfig) -> _Data:
    if config.streaming:
        stream = open_stream(config.data_dir)
        return _Data(stream, [], stream.hold_out(config.validation_fraction, config.validation_max_clips, config.seed))
    prepared = open_prepared(Path(config.data_dir), config.max_samples)
    prepared = with_speaker_name(prepared) if config.extend_speakers else prepared
    prepared = select_speakers(prepared, config.only_speakers, config.max_clips_per_speaker, config.seed)
    rows, held_out = train_validation_split(
        prepared, config.validation_fraction, config.validation_max_clips, config.seed
    )
    return _Data(prepared, rows, rows[: config.validation_max_clips] if config.validate_on_training_clips else held_out)


def _runs_dir(config: TrainConfig) -> Path:
    """Where runs' records lie: with the data by default, where these are a folder of this machine."""
    folder = Path(config.data_dir)
    beside = folder if folder.is_dir() else Path(config.checkpoint_dir).parent
    return Path(config.runs_dir or beside / "runs")


def _reader(
    prepared: PreparedData | ShardedData, tokenizer: VoiceTokenizer, spec: AudioSpec, speaker_ids: dict[str, int] | None
) -> PreparedClipDataset | StreamingClipDataset:
    if isinstance(prepared, ShardedData):
        return StreamingClipDataset(prepared, tokenizer, spec, speaker_ids)
    return PreparedClipDataset(prepared, tokenizer, spec, speaker_ids)


def _accounts(config: TrainConfig, data: _Data, order: BucketBatchSampler | StreamingBatchSampler) -> ClipAccounting:
    prepared, rows, held_out = data
    if isinstance(prepared, ShardedData):
        training = TrainedNames(prepared, held_out)
        names = [prepared.name(row) for row in held_out]
        return ClipAccounting(training, names, config.max_rejected_fraction, place=training.place)
    names = prepared.rows["filename"]
    trained = set(rows)
    apart = [names[row] for row in held_out if row not in trained]
    due = None if isinstance(order, StreamingBatchSampler) else order.expected_counts
    return ClipAccounting([names[row] for row in rows], apart, config.max_rejected_fraction, expected=due)


def _balance(config: TrainConfig, data: _Data) -> SpeakerTemperatureSampler | None:
    """How the speakers share an epoch; of a stream each clip comes once."""
    prepared, rows, _ = data
    if isinstance(prepared, ShardedData):
        return None
    speakers = prepared.rows["speaker"]
    balance = SpeakerTemperatureSampler([speakers[row] for row in rows], config.speaker_temperature, config.seed)
    if config.speaker_temperature < 1 and balance.speaker_count == 1:
        raise ConfigError(
            f"--speaker_temperature {config.speaker_temperature:g}: all clips of {prepared.root} that are trained on "
            "are of one speaker. Leave it out; or prepare the data with --speaker_column."
        )
    return balance


def _order(
    config: TrainConfig, data: _Data, spec: AudioSpec, world_size: int, balance: SpeakerTemperatureSampler | None
) -> BucketBatchSampler | StreamingBatchSampler:
    prepared, rows, held_out = data
    if isinstance(prepared, ShardedData):
        return StreamingBatchSampler(
            groups=prepared.groups,
            shard_of_group=prepared.shard_of_group,
            held_out=held_out,
            seed=config.seed,
            batch_size=config.batch_size,
            world_size=world_size,
            accumulation=config.gradient_accumulation_steps,
            window=config.streaming_window,
        )
    return BucketBatchSampler(
        rows=rows,
        frames=prepared.frames(rows, spec.hop),
        seed=config.seed,
        batch_size=config.batch_size,
        world_size=world_size,
        accumulation=config.gradient_accumulation_steps,
        batch_frames=round(config.batch_seconds * spec.sampling_rate / spec.hop),
        draw_epoch=balance.draw if balance is not None and config.speaker_temperature < 1 else None,
    )


def _voice(
    config: TrainConfig, prepared: PreparedData | ShardedData, resume_from: Path | None
) -> tuple[VitsModel, VoiceTokenizer]:
    """The voice to train, in training form: of the checkpoint, of ``model_name``, or a new one."""
    if resume_from is not None:
        return pretrained.model_from_config(resume_from / "voice"), load_tokenizer(str(resume_from / "voice"))
    if config.architecture is None:
        model = pretrained.load_model(str(config.model_name), config.layerdrop)
        model = add_speakers(model, prepared.speakers) if config.extend_speakers else model
        tokenizer = load_tokenizer(str(config.model_name), config.language)
        if config.extend_vocabulary and config.streaming and tokenizer.rewrites:
            raise ConfigError(
                "--extend_vocabulary with --streaming: the voice reads texts as phonemes or in Latin letters, and what "
                "a stream comes to so is not known beforehand. Leave one of them out."
            )
        return model, extension.add_characters(
            model, tokenizer, prepared.texts
        ) if config.extend_vocabulary else tokenizer
    tokenizer = build_tokenizer(prepared.texts, config.language, config.phonemes)
    return initialization.new_model(config.architecture, tokenizer, prepared.speakers, config.layerdrop), tokenizer


def _discriminator(config: TrainConfig, resume_from: Path | None) -> tuple[Discriminator, bool]:
    """The discriminators, and whether fresh ones meet a trained voice; of a checkpoint, as large as those it brings."""
    if resume_from is not None and (resume_from / DISCRIMINATOR_FILE).is_file():
        # What they once came from may be gone by now.
        return load_discriminator(resume_from / DISCRIMINATOR_FILE), False
    judges = pretrained_discriminator.load_or_create_discriminator(
        config.model_name, config.discriminator, config.discriminator_from
    )
    theirs = config.discriminator_from is not None or config.model_name is None
    return judges, not theirs and not pretrained_discriminator.has_discriminator(str(config.model_name))


def _missing(prepared: PreparedData | ShardedData, tokenizer: VoiceTokenizer) -> list[MissingCharacter]:
    """What the vocabulary lacks of the texts; of a stream as far as that is known without reading all shards."""
    if not isinstance(prepared, ShardedData):
        return vocabulary.missing_characters(tokenizer, prepared.texts, vocabulary.SAMPLE)
    if tokenizer.rewrites or not prepared.summary.get("characters"):
        return []
    return [replace(found, count=0, example="") for found in vocabulary.missing_characters(tokenizer, prepared.texts)]


def _run_name(config: TrainConfig, resume_from: Path | None, runtime: Runtime) -> str:
    """One name on every rank: as given, as before, or from the time. Runs on every rank."""
    if config.run_name is None and resume_from is not None:
        return str(checkpoint.read_record(resume_from)["fingerprint"]["must_match"]["run_name"])
    return config.run_name or runtime.on_main_then_broadcast(lambda: run_folder.new_name(_runs_dir(config)))


def _log_introduction(
    trainer: Trainer,
    seconds_per_update: float,
    config: TrainConfig,
    missing: Sequence[MissingCharacter],
    balance: SpeakerTemperatureSampler | None,
    resumed_from: Path | None,
    changes: list[str],
) -> None:
    """Says what is going to happen, what it takes, and what a constant spectrum would reach."""
    if resumed_from is not None:
        logger.info("Resumed from %s at update %d.", resumed_from, trainer.state.update)
    if changes:
        logger.warning("Changed since then (was -> now): %s", "; ".join(changes))
    plan = trainer.plan
    left = plan.total_updates - trainer.state.update
    directory = trainer.checkpoints.directory.resolve()
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    seats = trainer.stragglers.seats
    places = (
        f"{describe_topology(seats)}, {trainer.runtime.precision}" if len(seats) > 1 else trainer.runtime.describe()
    )
    trainer.tracker.update_summary({"ranks": places})
    threads = f", {torch.get_num_threads()} CPU thread(s)" if trainer.runtime.device.type == "cpu" else ""
    logger.info("%s%s", places, threads)
    logger.info("%s", plan)
    if balance is not None and balance.speaker_count > 1:
        logger.info("%s", balance)
    logger.info("expected time %s (%.2f s an update)", format_duration(left * seconds_per_update), seconds_per_update)
    logger.info(
        "checkpoints of %.2f GiB each, %s kept; %.1f GiB of disk are free",
        trainer.checkpoint_gib,
        config.keep_checkpoints or "all",
        free_gib,
    )
    speakers = trainer.validation.speakers if balance is None else balance.speaker_count
    if speakers > 1 and trainer.generator.model.config.num_speakers <= 1:
        logger.warning(
            "The voice has one speaker and the data several: all of them will train the one. --extend_speakers true "
            "makes it a voice of several; --only_speakers NAME trains on one."
        )
    vocabulary.write_missing(trainer.tracker.run_dir / "vocabulary.csv", missing)
    for line in vocabulary.describe_missing(missing):
        logger.warning("%s", line)
    if config.frozen_parts:
        logger.info("Frozen: %s.", ", ".join(config.frozen_parts))
    if config.ema_decay:
        logger.info("The voice will be an average of the weights (decay %g).", config.ema_decay)
    if plan.discriminator_warmup_updates:
        logger.info("The discriminators learn alone for the first %d updates.", plan.discriminator_warmup_updates)
    if plan.validation_clips:
        baseline = trainer.validation.constant_frame_mel
        trainer.tracker.update_summary({"constant_frame_mel": baseline})
        logger.info("Mel L1 of the best constant frame on the validation clips, to be beaten: %.4f", baseline)
