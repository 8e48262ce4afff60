"""``train_vits``: a prepared folder and a voice (or an architecture) into a trained voice."""

import logging
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from transformers import VitsConfig, VitsModel, VitsTokenizer

from vits_trainer import checkpoint
from vits_trainer.checkpoint import Checkpoints, Identity
from vits_trainer.config import TrainConfig
from vits_trainer.data import ClipReader, Order, PreparedSet, open_prepared, split
from vits_trainer.discriminator import Discriminator
from vits_trainer.errors import ConfigError, DataError
from vits_trainer.evaluation import Validation
from vits_trainer.generator import Generator
from vits_trainer.models import (
    DISCRIMINATOR_FILE,
    audio_spec,
    export,
    in_training_form,
    load_discriminator,
    load_model,
    new_model,
)
from vits_trainer.objective import Objective
from vits_trainer.runtime import Runtime
from vits_trainer.text import build_tokenizer, load_tokenizer
from vits_trainer.tracking import Tracker
from vits_trainer.trainer import Plan, Trainer

logger = logging.getLogger("vits_trainer")


def run(config: TrainConfig) -> int:
    """Trains, exports, and returns 0. Runs on every rank."""
    _quieten_libraries()
    resume_from = checkpoint.find(Path(config.checkpoint_dir), config.resume_from_checkpoint)
    prepared = open_prepared(Path(config.data_dir), config.max_samples)
    runtime = Runtime(config.precision, config.gradient_accumulation_steps)
    _log_to_console(runtime.is_main)
    torch.manual_seed(config.seed)
    model, tokenizer = _voice(config, prepared, resume_from)
    spec = audio_spec(model.config)
    if prepared.sampling_rate != spec.sampling_rate:
        raise DataError(
            f"{config.data_dir} is at {prepared.sampling_rate} Hz, the voice at {spec.sampling_rate} Hz. "
            f"Prepare the data again with --target_sr {spec.sampling_rate}."
        )
    discriminator = _discriminator(config) if config.objective == "vits" else None
    training_rows, validation_rows = split(
        prepared, config.validation_fraction, config.validation_max_clips, config.seed
    )
    order = Order(
        tuple(training_rows), config.seed, config.batch_size, runtime.world_size, config.gradient_accumulation_steps
    )
    plan = Plan.of(config, order, len(validation_rows))
    reader = ClipReader(prepared, tokenizer, spec, _speaker_ids(model, prepared))
    objective = Objective(config.objective, config.loss_weights, spec, config.segment_frames)
    generator = Generator(model, "posterior" if objective.adversarial else "prior", config.segment_frames)
    run_name = _run_name(config, resume_from, runtime)
    identity = Identity(
        run_name=run_name,
        data=prepared.fingerprint(),
        world_size=runtime.world_size,
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        seed=config.seed,
        objective=config.objective,
    )
    checkpoints = Checkpoints(Path(config.checkpoint_dir), config.keep_checkpoints, runtime, identity, config)
    runs_dir = Path(config.runs_dir or Path(config.data_dir) / "runs")
    facts = {"plan": asdict(plan), "versions": _versions(), "machine": runtime.describe()}
    with Tracker(runs_dir / run_name, config, facts, runtime.is_main) as tracker:
        validation = Validation(runtime, objective, reader, validation_rows, config.batch_size, config.seed)
        trainer = Trainer(
            config, plan, runtime, objective, generator, discriminator, tokenizer, order, reader, validation,
            checkpoints, tracker,
        )  # fmt: skip
        if resume_from is not None:
            trainer.resume(resume_from)
        else:
            # The weights are equal on all ranks by now; noise, dropout and segments must not be.
            torch.manual_seed(int(np.random.SeedSequence([config.seed, runtime.rank]).generate_state(1)[0]))
        _introduce(plan, runtime, validation, tracker)
        trainer.fit()
        if runtime.is_main:
            export(model, tokenizer, discriminator, Path(config.output_dir))
            logger.info("The voice: %s   The run: %s", config.output_dir, tracker.run_dir)
        runtime.wait()
    runtime.close()
    return 0


def _voice(config: TrainConfig, prepared: PreparedSet, resume_from: Path | None) -> tuple[VitsModel, VitsTokenizer]:
    """The voice to train, in training form: of the checkpoint, of ``model_name``, or a new one."""
    if resume_from is not None:
        voice = resume_from / "voice"
        return in_training_form(VitsModel(VitsConfig.from_pretrained(voice))), load_tokenizer(str(voice))
    if config.architecture is None:
        assert config.model_name is not None  # noqa: S101 - TrainConfig refuses it
        return load_model(config.model_name, config.layerdrop), load_tokenizer(config.model_name)
    tokenizer = build_tokenizer(prepared.rows["text"])
    return new_model(config.architecture, tokenizer, prepared.speakers, config.layerdrop), tokenizer


def _discriminator(config: TrainConfig) -> Discriminator:
    """The discriminators that lie beside the voice, or fresh ones."""
    beside = Path(config.model_name or "") / DISCRIMINATOR_FILE
    if config.model_name and beside.is_file():
        return load_discriminator(beside)
    logger.info("Discriminators start fresh: there is no %s beside the voice.", DISCRIMINATOR_FILE)
    return Discriminator(config.discriminator)


def _speaker_ids(model: VitsModel, prepared: PreparedSet) -> dict[str, int] | None:
    """Id of each speaker for voices of several: as saved with the voice, sorted names otherwise."""
    found = prepared.speakers
    if model.config.num_speakers <= 1:
        if len(found) > 1:
            logger.warning("The voice has one speaker, the data %d: all of them will train the one.", len(found))
        return None
    names: list[str] = getattr(model.config, "speakers", None) or found
    unknown = sorted(set(found) - set(names))
    if unknown or len(names) > model.config.num_speakers:
        raise ConfigError(
            f"The voice has {model.config.num_speakers} speakers and does not know "
            f"{', '.join(unknown[:5]) or 'all'} of the data's. Leave those clips out, or start from a voice that does."
        )
    return {name: index for index, name in enumerate(names)}


def _run_name(config: TrainConfig, resume_from: Path | None, runtime: Runtime) -> str:
    """One name on every rank: as given, as before, or from the time. Runs on every rank."""
    if config.run_name:
        return config.run_name
    if resume_from is not None:
        return str(checkpoint.read_record(resume_from)["identity"]["run_name"])
    return runtime.from_main(time.strftime("train_vits-%Y%m%d-%H%M%S"))


def _introduce(plan: Plan, runtime: Runtime, validation: Validation, tracker: Tracker) -> None:
    """Says what is going to happen, and what a constant spectrum would reach."""
    if not runtime.is_main:
        return
    logger.info("%s. %d clips to train on, %d to validate with.", runtime.describe(), plan.training_clips,
                plan.validation_clips)  # fmt: skip
    logger.info("%d clips an update, %d updates an epoch, %d updates in all.", plan.clips_per_update,
                plan.updates_per_epoch, plan.total_updates)  # fmt: skip
    if plan.validation_clips:
        baseline = validation.constant_frame_mel()
        tracker.summarise({"constant_frame_mel": baseline})
        logger.info("Mel L1 of the best constant frame on the validation clips, to be beaten: %.4f", baseline)


def _versions() -> dict[str, str]:
    names = ("vits-trainer", "torch", "torchaudio", "accelerate", "transformers", "datasets", "wandb")
    return {name: version(name) for name in names}


def _log_to_console(is_main: bool) -> None:
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO if is_main else logging.WARNING)


def _quieten_libraries() -> None:
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
