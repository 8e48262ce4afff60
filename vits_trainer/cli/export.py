"""``export``: a checkpoint into a voice that ``transformers`` loads, as the end of a run does it."""

from pathlib import Path

from vits_trainer.config.voices import ExportConfig
from vits_trainer.models import pretrained
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, load_discriminator
from vits_trainer.models.voice_versions import check_voice_destination, exclusive
from vits_trainer.text.tokenizer import load_tokenizer
from vits_trainer.training import checkpoint


def run(config: ExportConfig) -> int:
    """Verifies the checkpoint, writes the voice with its discriminators beside it, and says where.

    Raises:
        CheckpointError: it is damaged, or no checkpoint.
        ConfigError: in the voice's place is something else than a voice, or it cannot be written.
        DataError: another process is at work in the voice's place.
        ModelError: a weight is not finite.
    """
    place = Path(config.checkpoint)
    output_dir = Path(config.output_dir or place.resolve().parent.parent / "exported" / place.resolve().name)
    check_voice_destination(output_dir, "output_dir", {"the checkpoint": place})
    checkpoint.verify(place)
    with exclusive(output_dir):
        _export(place, output_dir, config.keep_versions)
    print(f"The voice of {place}: {output_dir}")
    return 0


def _export(place: Path, output_dir: Path, keep_versions: int) -> None:
    model = pretrained.model_from_config(place / "voice")
    checkpoint.load_networks(place, model, None)
    checkpoint.load_average(place, model)
    judge = place / DISCRIMINATOR_FILE
    discriminator = load_discriminator(judge) if judge.is_file() else None
    pretrained.export(model, load_tokenizer(str(place / "voice")), discriminator, output_dir, keep_versions)
