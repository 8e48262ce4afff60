"""A training run, from its configuration to the exported voice."""

import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import VitsModel

from vits_trainer.config.framing import AudioSpec, check_reflection, check_segment
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.prepared import published_summary
from vits_trainer.data.training_data import TrainingData, open_training_data
from vits_trainer.distributed import launch_environment
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.distributed.shutdown import ShutdownRequest
from vits_trainer.distributed.stragglers import describe_topology
from vits_trainer.models import extension, initialization, pretrained, pretrained_discriminator, voice_versions
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, Discriminator, load_discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.speech_encoder import attach_speech_encoder
from vits_trainer.text import vocabulary
from vits_trainer.text.languages import espeak_name
from vits_trainer.text.tokenizer import VoiceTokenizer, build_tokenizer, load_tokenizer
from vits_trainer.tracking import hub, model_card, run_folder
from vits_trainer.tracking.model_card import ModelCardInfo
from vits_trainer.tracking.tracker import RunOutcome, Tracker
from vits_trainer.training import agreement, checkpoint, resume
from vits_trainer.training.checkpoint import CheckpointManager
from vits_trainer.training.checkpoint_record import CheckpointRecord, read_record
from vits_trainer.training.log_lines import format_duration
from vits_trainer.training.objective import Objective
from vits_trainer.training.plan import TrainingPlan
from vits_trainer.training.selection_metric import choose_best_metric, validation_metrics
from vits_trainer.training.trainer import Trainer
from vits_trainer.training.validation import Validation
from vits_trainer.utils.errors import ConfigError, DataError, require
from vits_trainer.utils.files import followed
from vits_trainer.utils.logging import log_to_console
from vits_trainer.utils.strings import counted
from vits_trainer.utils.versions import versions

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

DONE = "done"


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended, the same on every rank."""

    status: str
    """``done``, or why the run stopped before its last update."""
    update: int
    """Updates done."""
    exit_code: int
    """What the command line ends with: 0 if the run is done."""
    run_dir: Path
    """metrics.jsonl, train.log, samples and the W&B run."""
    voice: Path | None
    """The exported voice; None if the run stopped before its last update."""


def train(config: TrainConfig, data: "TrainingData | Dataset | None" = None) -> TrainingResult:
    """Trains a voice and exports it to ``output_dir``. Runs on every rank.

    Args:
        config: of the run.
        data: what to train on (None: opened from the configuration). A ``datasets.Dataset`` with an audio column
            (``datasets.Audio``) and a text column is streamed as it lies.

    Raises:
        VitsTrainerError: the configuration, the data or the machine do not allow it, or training failed; what was
            trained before is saved.
    """
    if not isinstance(data, TrainingData):
        require(data is None or config.dataset is None, f"--dataset {config.dataset} and data exclude each other.")
        config = config if data is None else replace(config, streaming=True)
        data = open_training_data(config, data)
    runtime = Runtime(config.precision, config.gradient_accumulation_steps, config.deterministic, config.rank_timeout_s)
    log_to_console(runtime.is_main_process)
    with runtime.report_failure_to_peers():
        agreement.require_same_run(config, data, runtime)
        _check_processes(config, runtime)
        # Only the machine of the main rank has to be logged in.
        runtime.on_main_then_broadcast(lambda: hub.check_can_push(config))
        with runtime.on_main(lambda: _exclusive_outputs(config)):
            result = _train(config, data, runtime)
    is_main = runtime.is_main_process
    runtime.close()
    # After the process group is closed: an upload may take long or fail, and no rank waits for it.
    if config.push_to_hub and is_main and result.voice is not None:
        address = hub.push_voice(result.voice, config.push_to_hub, config.hub_private)
        logger.info("Pushed the voice to %s", address)
    return result


def _train(config: TrainConfig, data: TrainingData, runtime: Runtime) -> TrainingResult:
    """Builds the parts, trains and exports. Runs on every rank."""
    resume_from = runtime.on_main_then_broadcast(lambda: resume.select_checkpoint(config))
    agreement.require_same_start(config, resume_from, runtime)
    record = None if resume_from is None else read_record(resume_from)
    if record is not None:
        resume.keep_threads(record, runtime)
    torch.manual_seed(config.seed)  # for fresh weights; updates draw from seeds that follow from (seed, update, rank)
    networks = _build_networks(config, data, resume_from)
    model, tokenizer, spec = networks.generator.model, networks.tokenizer, networks.spec
    config = choose_best_metric(config, len(data.validation_rows), tokenizer.language, record, runtime)
    sampler = data.sampler(spec, runtime.num_processes)
    restored = {} if record is None else resume.restored_plan(record, config)
    plan = TrainingPlan.from_config(config, sampler, len(data.validation_rows), networks.fresh_discriminator, restored)
    # Without dataset.json the speakers of shards are known only after reading all: not for a voice of one speaker.
    speakers = data.speakers if model.config.num_speakers > 1 else []
    dataset = data.dataset(tokenizer, spec, pretrained.speaker_ids(model.config, speakers))
    agreement.require_same_recordings(data, dataset, config.seed, runtime)
    scorer = validation_metrics(config, spec.sampling_rate, tokenizer.language, runtime)
    validation = Validation(
        runtime, networks.objective, dataset, data.validation_rows, config.seed, scorer,
        config.validation_score_clips,
    )  # fmt: skip
    name = _run_name(config, record, runtime)
    run_dir = _runs_dir(config) / name
    fingerprint = resume.run_fingerprint(name, config, data, sampler, runtime)
    changes = [] if resume_from is None else resume.diff_fingerprint(resume_from, fingerprint)
    checkpoints = CheckpointManager(Path(config.checkpoint_dir), config.keep_checkpoints, runtime, fingerprint, config)
    facts = {
        "plan": asdict(plan),
        "versions": versions(),
        "machine": runtime.describe(),
        "data": published_summary(data.summary),
    }
    resumed_at = None if record is None else record.state.update
    # Signals are recorded until the end: a launcher sends one if another rank fails, and this rank must still report.
    shutdown = ShutdownRequest(run_dir / "STOP", config.save_before_s)
    tracked = Tracker(run_dir, config, facts, runtime.is_main_process, resumed_at)
    with shutdown, runtime.on_main(lambda: run_folder.exclusive_run(run_dir)), tracked as tracker:
        trainer = Trainer(
            config, plan, runtime, networks.objective, networks.generator, networks.discriminator, tokenizer, sampler,
            dataset, data.accounting(sampler), validation, checkpoints, tracker, shutdown,
        )  # fmt: skip
        runtime.on_main_then_broadcast(lambda: resume.set_aside_newer(checkpoints.directory, resume_from))
        if resume_from is not None:
            trainer.resume(resume_from)
        trainer.drop_unreadable_validation_clips()
        logger.info("Running the largest batches once, to check the memory and the speed ...")
        seconds_per_update = trainer.dry_run()
        if runtime.is_main_process:
            _log_introduction(trainer, data, seconds_per_update, resume_from, changes)
        voice = None
        if trainer.fit():
            tracker.outcome = RunOutcome(DONE, trainer.state.update)
            voice = Path(config.output_dir)
            if runtime.is_main_process:
                _export(trainer, data, voice)
    outcome = tracker.outcome
    return TrainingResult(outcome.status, outcome.update, outcome.exit_code, run_dir, voice)


@dataclass(frozen=True)
class _Networks:
    """What is trained, and by what."""

    generator: Generator
    discriminator: Discriminator | None
    fresh_discriminator: bool
    """Whether a trained voice has a discriminator that was not trained with it."""
    tokenizer: VoiceTokenizer
    spec: AudioSpec
    objective: Objective


def _build_networks(config: TrainConfig, data: TrainingData, resume_from: Path | None) -> _Networks:
    model, tokenizer = _load_voice(config, data, resume_from)
    spec = pretrained.audio_spec(model.config)
    if data.sampling_rate not in (None, spec.sampling_rate):
        raise DataError(
            f"{data.location} is at {data.sampling_rate} Hz, the voice at {spec.sampling_rate} Hz: prepare the data "
            f"again with --target_sr {spec.sampling_rate}."
        )
    check_segment(config.segment_frames, spec.sampling_rate, spec.n_fft, spec.hop)
    for n_fft, hop, _ in config.discriminator.resolutions:
        check_reflection(config.segment_frames * spec.hop, n_fft, hop)
    objective = Objective(config.objective, config.loss_weights, spec, config.segment_frames)
    discriminator, is_fresh = _load_discriminator(config, spec, resume_from) if objective.adversarial else (None, False)
    generator = Generator(model, "posterior" if objective.adversarial else "prior", config.segment_frames)
    initialization.freeze(model, config.frozen_parts)
    return _Networks(generator, discriminator, is_fresh, tokenizer, spec, objective)


def _load_voice(config: TrainConfig, data: TrainingData, resume_from: Path | None) -> tuple[VitsModel, VoiceTokenizer]:
    """Returns the voice to train, with weight norm: of the checkpoint, of ``model_name``, or a new one."""
    logger.info("Loading %s ...", resume_from or config.model_name or "a new voice with random weights")
    if resume_from is not None:
        return pretrained.model_from_config(resume_from / "voice"), load_tokenizer(str(resume_from / "voice"))
    if config.architecture is not None:
        tokenizer = build_tokenizer(data.texts, config.language, config.phonemes)
        return initialization.new_model(config.architecture, tokenizer, data.speakers, config.layerdrop), tokenizer
    model = pretrained.load_model(str(config.model_name), config.layerdrop)
    if config.decoder is not None:
        model = extension.replace_decoder(model, config.decoder)
    if config.extend_speakers:
        model = extension.add_speakers(model, data.speakers)
    tokenizer = load_tokenizer(str(config.model_name), config.language)
    if config.extend_vocabulary:
        if tokenizer.rewrites and not data.knows_texts:
            raise ConfigError(
                "--extend_vocabulary with --streaming: the voice reads texts as phonemes or in Latin letters, and the "
                "symbols of streamed texts are not known before training. Leave out one of the two."
            )
        tokenizer = extension.add_characters(model, tokenizer, data.texts)
    return model, tokenizer


def _load_discriminator(config: TrainConfig, spec: AudioSpec, resume_from: Path | None) -> tuple[Discriminator, bool]:
    """Returns the discriminator, and whether it is fresh although the voice is trained."""
    if resume_from is not None and (resume_from / DISCRIMINATOR_FILE).is_file():
        # The file that it first came from may be gone.
        discriminator = load_discriminator(resume_from / DISCRIMINATOR_FILE)
        attach_speech_encoder(discriminator, config, spec, is_resumed=True)
        return discriminator, False
    discriminator = pretrained_discriminator.load_or_create_discriminator(
        config.model_name, config.discriminator, config.discriminator_from
    )
    extended = discriminator.add_resolutions(config.discriminator.resolutions)
    extended |= attach_speech_encoder(discriminator, config, spec, is_resumed=False)
    if config.model_name is None:
        return discriminator, False
    trained = config.discriminator_from or pretrained_discriminator.has_discriminator(config.model_name)
    return discriminator, extended or not trained


def _export(trainer: Trainer, data: TrainingData, voice: Path) -> None:
    """Writes the voice and its model card. Runs on the main rank."""
    model, tokenizer, config = trainer.generator.model, trainer.tokenizer, trainer.config
    update = _load_final_weights(trainer)
    pretrained.export(model, tokenizer, trainer.discriminator, voice, config.keep_versions)
    if data.selection is not None:
        voice_versions.write_selection(voice, data.selection)
    info = ModelCardInfo(
        config=config,
        data=data.summary,
        training_clips=trainer.sampler.clips,
        language=tokenizer.language,
        speakers=tuple(pretrained.speaker_names(model.config)),
        phonemes_of=espeak_name(tokenizer.language) if tokenizer.phonemize else None,
        sampling_rate=trainer.objective.spec.sampling_rate,
        update=update,
        versions=versions(),
        run_dir=trainer.tracker.run_dir,
    )
    model_card.write_model_card(voice, info)
    logger.info("Voice: %s   Run: %s", voice, trainer.tracker.run_dir)
    best = trainer.checkpoints.directory / f"checkpoint-{trainer.state.selection.best_update}"
    if trainer.state.selection.best_update != update and best.is_dir():
        logger.info(
            "It has the weights of the last update. The best by %s: vits-trainer export --checkpoint %s",
            config.best_metric,
            shlex.quote(str(best)),
        )


def _load_final_weights(trainer: Trainer) -> int:
    """Loads the weights to export: of the EMA if there is one, and with ``patience`` of the best update.

    Returns:
        Their update.
    """
    ema, state = trainer.train_step.generator_optimizer.ema, trainer.state
    if ema is not None:
        ema.copy_to_network()
    if not trainer.config.patience:
        return state.update
    best = trainer.checkpoints.directory / f"checkpoint-{state.selection.best_update}"
    if not best.is_dir():  # of a run that was resumed from another folder
        logger.warning("%s, the best checkpoint, does not exist: exporting the last update's weights.", best)
        return state.update
    checkpoint.load_networks(best, trainer.generator.model, trainer.discriminator)
    checkpoint.load_average(best, trainer.generator.model)
    logger.info("Exporting the weights of the best checkpoint, %s.", best)
    return state.selection.best_update


@contextmanager
def _exclusive_outputs(config: TrainConfig) -> Iterator[None]:
    """Inside, no other process writes to the folders of checkpoints and of the voice."""
    output, start = Path(config.output_dir), config.model_name
    kept = {
        "--data_dir": config.data_dir if Path(config.data_dir).exists() else None,
        "--checkpoint_dir": config.checkpoint_dir,
        "--runs_dir": _runs_dir(config),
        # If the new voice replaces the voice that training starts from, the old one becomes a version.
        "--model_name": start if start and Path(start).exists() and followed(Path(start)) != followed(output) else None,
    }
    voice_versions.check_voice_destination(output, "output_dir", kept)
    with checkpoint.exclusive_lock(Path(config.checkpoint_dir)), voice_versions.exclusive(output):
        yield


def _check_processes(config: TrainConfig, runtime: Runtime) -> None:
    """Raises ConfigError for settings that the device or the number of processes excludes."""
    if config.cuda_graphs and (runtime.device.type != "cuda" or runtime.num_processes > 1):
        raise ConfigError(
            f"--cuda_graphs needs one process on a GPU, and this run has {runtime.num_processes} on "
            f"{runtime.device_name}. Omit it."
        )
    if config.layerdrop and runtime.num_processes > 1:
        raise ConfigError(
            f"--layerdrop {config.layerdrop} with {runtime.num_processes} processes: a layer that one process drops "
            "has no gradient to average. Leave it at 0, as in VITS."
        )


def _runs_dir(config: TrainConfig) -> Path:
    """The folder of runs: by default in a local --data_dir, else next to the checkpoints."""
    folder = Path(config.data_dir)
    parent = folder if folder.is_dir() and config.dataset is None else Path(config.checkpoint_dir).parent
    return Path(config.runs_dir or parent / "runs")


def _run_name(config: TrainConfig, record: CheckpointRecord | None, runtime: Runtime) -> str:
    """One name on every rank: as given, of the resumed run, or from the time. Runs on every rank."""
    if config.run_name is None and record is not None:
        # The checkpoint may be somebody else's.
        return record.fingerprint.run_name()
    return config.run_name or runtime.on_main_then_broadcast(lambda: run_folder.new_name(_runs_dir(config)))


def _log_introduction(
    trainer: Trainer, data: TrainingData, seconds_per_update: float, resumed_from: Path | None, changes: Sequence[str]
) -> None:
    """Logs what the run will do, how long it takes, and the baseline to beat."""
    config, plan, tracker = trainer.config, trainer.plan, trainer.tracker
    if resumed_from is not None:
        logger.info("Resumed from %s at update %d.", resumed_from, trainer.state.update)
    if changes:
        logger.warning("Settings changed since the checkpoint (was -> now): %s", "; ".join(changes))
    infos = trainer.stragglers.ranks
    ranks = f"{describe_topology(infos)}, {trainer.runtime.precision}" if len(infos) > 1 else trainer.runtime.describe()
    tracker.update_summary({"ranks": ranks})
    threads = f", {counted(torch.get_num_threads(), 'CPU thread')}" if trainer.runtime.device.type == "cpu" else ""
    logger.info("%s%s", ranks, threads)
    if threads and not launch_environment.selects_cpu(os.environ):
        cuda = torch.version.cuda
        logger.warning(
            "No GPU is visible: this run trains on the CPU. If there is one, nvidia-smi must list it, %s, and "
            "CUDA_VISIBLE_DEVICES must not hide it. ACCELERATE_USE_CPU=true selects the CPU.",
            f"its driver must support CUDA {cuda}" if cuda else "PyTorch must be a build with CUDA (this one is not)",
        )
    logger.info("%s", plan)
    balance = data.speaker_balance
    if balance is not None and balance.speaker_count > 1:
        logger.info("%s", balance)
    if (line := data.update_speakers(trainer.sampler)) is not None:
        logger.info("%s", line)
    remaining_s = (plan.total_updates - trainer.state.update) * seconds_per_update
    logger.info(
        "Expected time: about %s and that of validation and saving (%.2g s/update before training; each log line has a "
        "newer estimate)",
        format_duration(remaining_s),
        seconds_per_update,
    )
    directory = trainer.checkpoints.directory.resolve()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    logger.info(
        "%.2f GiB per checkpoint, %s kept; %.1f GiB of disk are free",
        checkpoint.checkpoint_gib(trainer.train_step.optimizers),
        config.keep_checkpoints or "all",
        shutil.disk_usage(existing).free / 2**30,
    )
    speakers = trainer.validation.speakers if balance is None else balance.speaker_count
    if speakers > 1 and trainer.generator.model.config.num_speakers <= 1:
        logger.warning(
            "The voice has one speaker, the data several: all of them train the same one. --extend_speakers true "
            "adds speakers to the voice; --only_speakers NAME trains on one."
        )
    missing = data.missing_characters(trainer.tokenizer)
    vocabulary.write_missing(tracker.run_dir / "vocabulary.csv", missing)
    for line in vocabulary.describe_missing(missing):
        logger.warning("%s", line)
    if config.frozen_parts:
        logger.info("Frozen: %s.", ", ".join(config.frozen_parts))
    if config.ema_decay:
        logger.info("The exported voice is an exponential moving average of the weights (decay %g).", config.ema_decay)
    if plan.discriminator_warmup_updates:
        logger.info("Only the discriminator is trained for the first %d updates.", plan.discriminator_warmup_updates)
    if plan.validation_clips:
        baseline = trainer.validation.constant_frame_mel
        tracker.update_summary({"constant_frame_mel": baseline})
        logger.info("Baseline on the validation clips: mel L1 of the best constant frame %.4f", baseline)
