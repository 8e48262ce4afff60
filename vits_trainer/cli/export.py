"""``export``: exports a checkpoint as a voice for ``transformers``, as at the end of a run."""

from pathlib import Path

from vits_trainer.config.voices import ExportConfig
from vits_trainer.models import pretrained
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, load_discriminator
from vits_trainer.models.voice_versions import check_voice_destination, exclusive
from vits_trainer.text.tokenizer import load_tokenizer
from vits_trainer.training import checkpoint
from vits_trainer.training.checkpoint_record import verify_checkpoint


def run(config: ExportConfig) -> int:
    """Verifies the checkpoint, writes the voice with its discriminators and prints the path.

    Raises:
        CheckpointError: it is damaged, or not a checkpoint.
        ConfigError: the output directory contains something other than a voice, or cannot be written.
        DataError: another process is writing to the output directory.
        ModelError: a weight is NaN or Inf.
    """
    checkpoint_dir = Path(config.checkpoint)
    resolved = checkpoint_dir.resolve()
    output_dir = Path(config.output_dir or resolved.parent.parent / "exported" / resolved.name)
    check_voice_destination(output_dir, "output_dir", {"the checkpoint": checkpoint_dir})
    verify_checkpoint(checkpoint_dir)
    with exclusive(output_dir):
        _export(checkpoint_dir, output_dir, config.keep_versions)
    print(f"Exported {checkpoint_dir} to {output_dir}")
    return 0


def _export(checkpoint_dir: Path, output_dir: Path, keep_versions: int) -> None:
    model = pretrained.model_from_config(checkpoint_dir / "voice")
    checkpoint.load_networks(checkpoint_dir, model, None)
    checkpoint.load_average(checkpoint_dir, model)
    weights = checkpoint_dir / DISCRIMINATOR_FILE
    discriminator = load_discriminator(weights) if weights.is_file() else None
    pretrained.export(model, load_tokenizer(str(checkpoint_dir / "voice")), discriminator, output_dir, keep_versions)
