"""``train_vits``: a prepared folder and a voice (or an architecture) into a trained voice."""

import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import VitsModel, VitsTokenizer

from vits_trainer import checkpoint, models
from vits_trainer.checkpoint import Checkpoints, Identity
from vits_trainer.config import TrainConfig
from vits_trainer.data import ClipReader, Order, PreparedSet, open_prepared, require_rate, split
from vits_trainer.evaluation import Validation
from vits_trainer.generator import Generator
from vits_trainer.objective import Objective
from vits_trainer.runtime import Runtime
from vits_trainer.text import build_tokenizer, load_tokenizer
from vits_trainer.tracking import Tracker, log_to_console, versions
from vits_trainer.trainer import Plan, Trainer

logger = logging.getLogger("vits_trainer")


def run(config: TrainConfig) -> int:
    """Trains, exports, and returns 0. Runs on every rank."""
    resume_from = checkpoint.find(Path(config.checkpoint_dir), config.resume_from_checkpoint)
    prepared = open_prepared(Path(config.data_dir), config.max_samples)
    rows, held_out = split(prepared, config.validation_fraction, config.validation_max_clips, config.seed)
    if config.validate_on_training_clips:
        held_out = rows[: config.validation_max_clips]
    accumulation = config.gradient_accumulation_steps
    runtime = Runtime(config.precision, accumulation)
    log_to_console(runtime.is_main)

    torch.manual_seed(config.seed)
    model, tokenizer = _voice(config, prepared, resume_from)
    spec = models.audio_spec(model.config)
    require_rate(prepared, spec)
    objective = Objective(config.objective, config.loss_weights, spec, config.segment_frames)
    discriminator = models.discriminator_for(config.model_name, config.discriminator) if objective.adversarial else None
    generator = Generator(model, "posterior" if objective.adversarial else "prior", config.segment_frames)
    if resume_from is None:
        # The weights are equal on all ranks by now; noise, dropout and segments must not be.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, runtime.rank]).generate_state(1)[0]))

    order = Order(tuple(rows), config.seed, config.batch_size, runtime.world_size, accumulation)
    fresh_judges = config.model_name is not None and not models.has_discriminator(config.model_name)
    plan = Plan.of(config, order, len(held_out), fresh_judges)
    reader = ClipReader(prepared, tokenizer, spec, models.speaker_ids(model.config, prepared.speakers))
    validation = Validation(runtime, objective, reader, held_out, config.batch_size, config.seed)
    name = _run_name(config, resume_from, runtime)
    identity = Identity(
        name,
        prepared.fingerprint(rows),
        runtime.world_size,
        config.batch_size,
        accumulation,
        config.seed,
        config.objective,
    )
    checkpoints = Checkpoints(Path(config.checkpoint_dir), config.keep_checkpoints, runtime, identity, config)
    runs_dir = Path(config.runs_dir or Path(config.data_dir) / "runs")
    facts = {"plan": asdict(plan), "versions": versions(), "machine": runtime.describe(), "data": prepared.summary}
    with Tracker(runs_dir / name, config, facts, runtime.is_main) as tracker:
        trainer = Trainer(
            config, plan, runtime, objective, generator, discriminator, tokenizer, order, reader, validation,
            checkpoints, tracker,
        )  # fmt: skip
        if resume_from is not None:
            trainer.resume(resume_from)
        seconds_per_update = trainer.rehearse()
        trainer.plan = Plan.of(config, order, len(held_out), fresh_judges, seconds_per_update)
        if runtime.is_main:
            _introduce(trainer, seconds_per_update, config, prepared)
        trainer.fit()
        if runtime.is_main:
            models.export(model, tokenizer, discriminator, Path(config.output_dir))
            logger.info("The voice: %s   The run: %s", config.output_dir, tracker.run_dir)
    runtime.close()
    return 0


def _voice(config: TrainConfig, prepared: PreparedSet, resume_from: Path | None) -> tuple[VitsModel, VitsTokenizer]:
    """The voice to train, in training form: of the checkpoint, of ``model_name``, or a new one."""
    if resume_from is not None:
        return models.model_to_restore(resume_from / "voice"), load_tokenizer(str(resume_from / "voice"))
    if config.architecture is None:
        return models.load_model(str(config.model_name), config.layerdrop), load_tokenizer(str(config.model_name))
    tokenizer = build_tokenizer(prepared.rows["text"])
    return models.new_model(config.architecture, tokenizer, prepared.speakers, config.layerdrop), tokenizer


def _run_name(config: TrainConfig, resume_from: Path | None, runtime: Runtime) -> str:
    """One name on every rank: as given, as before, or from the time. Runs on every rank."""
    if config.run_name is None and resume_from is not None:
        return str(checkpoint.read_record(resume_from)["identity"]["run_name"])
    return config.run_name or runtime.from_main(time.strftime("train_vits-%Y%m%d-%H%M%S"))


def _introduce(trainer: Trainer, seconds_per_update: float, config: TrainConfig, prepared: PreparedSet) -> None:
    """Says what is going to happen, what it takes, and what a constant spectrum would reach."""
    plan = trainer.plan
    left = plan.total_updates - trainer.state.update
    directory = trainer.checkpoints.directory.resolve()
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    logger.info("%s", trainer.runtime.describe())
    logger.info("%s", plan)
    logger.info("expected time %.1f h (%.2f s an update)", left * seconds_per_update / 3600, seconds_per_update)
    logger.info(
        "checkpoints of %.2f GiB each, %s kept; %.1f GiB of disk are free",
        trainer.checkpoint_gib,
        config.keep_checkpoints or "all",
        free_gib,
    )
    if len(prepared.speakers) > 1 and trainer.generator.model.config.num_speakers <= 1:
        logger.warning("The voice has one speaker and the data several: all of them will train the one.")
    if plan.warmup_updates:
        logger.info("The discriminators learn alone for the first %d updates.", plan.warmup_updates)
    if plan.validation_clips:
        baseline = trainer.validation.constant_frame_mel
        trainer.tracker.summarise({"constant_frame_mel": baseline})
        logger.info("Mel L1 of the best constant frame on the validation clips, to be beaten: %.4f", baseline)
