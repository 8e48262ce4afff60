"""``export``: a checkpoint into a voice that ``transformers`` loads, as the end of a run does it."""

from pathlib import Path

from vits_trainer import checkpoint, models
from vits_trainer.config_voices import ExportConfig
from vits_trainer.text import load_tokenizer


def run(config: ExportConfig) -> int:
    """Verifies the checkpoint, writes the voice with its discriminators beside it, and says where.

    Raises:
        CheckpointError: it is damaged, or no checkpoint.
        ModelError: a weight is not finite.
    """
    place = Path(config.checkpoint)
    checkpoint.verify(place)
    model = models.model_to_restore(place / "voice")
    checkpoint.load_networks(place, model, None)
    checkpoint.load_average(place, model)
    judge = place / models.DISCRIMINATOR_FILE
    discriminator = models.load_discriminator(judge) if judge.is_file() else None
    output_dir = Path(config.output_dir or place.resolve().parent.parent / "exported" / place.resolve().name)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    models.export(model, load_tokenizer(str(place / "voice")), discriminator, output_dir)
    print(f"The voice of {place}: {output_dir}")
    return 0
