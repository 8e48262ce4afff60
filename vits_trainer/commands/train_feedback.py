"""``train_feedback``: users' corrections of a voice into a better one beside it, through the same trainer."""

import shutil
from pathlib import Path

from vits_trainer.commands import prepare_data, train_vits
from vits_trainer.config import FeedbackConfig, PrepareConfig, TrainConfig
from vits_trainer.errors import DataError
from vits_trainer.models import audio_spec, read_config


def run(config: FeedbackConfig) -> int:
    """Checks each correction like any clip, learns from them at a low rate, and writes the new voice beside the old.

    The prepared corrections, checkpoints and the run's record go to ``<output_dir>_work``.

    Raises:
        DataError: there is no correction, or the new voice would take the old one's place.
    """
    feedback, served, output = Path(config.feedback_dir), Path(config.model_dir), Path(config.output_dir)
    if not any(feedback.glob("*.txt")):
        raise DataError(
            f"{feedback} holds no correction. Each is two files: NAME.wav (what to say) and NAME.txt (its text)."
        )
    if output.resolve() == served.resolve():
        raise DataError(f"--output_dir {output} is the voice that is served. Name another folder for the new voice.")
    voice = str(served) if (served / "config.json").is_file() else config.base_model
    work = output.with_name(f"{output.name}_work")
    shutil.rmtree(work, ignore_errors=True)
    rate = audio_spec(read_config(voice)).sampling_rate
    prepare_data.run(PrepareConfig(dataset=str(feedback), output_dir=str(work / "corrections"), target_sr=rate))
    return train_vits.run(
        TrainConfig(
            data_dir=str(work / "corrections"),
            checkpoint_dir=str(work / "checkpoints"),
            output_dir=str(output),
            runs_dir=str(work / "runs"),
            model_name=voice,
            run_name=config.run_name,
            batch_size=config.batch_size,
            gradient_accumulation_steps=1,
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            precision=config.precision,
            seed=config.seed,
            # All corrections are learnt from; the same ones are what the voice is judged by, before and after.
            validation_fraction=0,
            validate_on_training_clips=True,
            wandb_project=config.wandb_project,
            wandb_entity=config.wandb_entity,
            wandb_tags=config.wandb_tags,
        )
    )
