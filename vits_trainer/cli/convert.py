"""``convert``: imports voices of other trainers, and exports voices for other programs."""

from pathlib import Path

from transformers import VitsModel

from vits_trainer.config.voices import ONNX_FORMATS, ConvertConfig
from vits_trainer.models import pretrained
from vits_trainer.models.conversion import export_original, importer
from vits_trainer.models.conversion.half_precision import describe_rounding, rounded_to_half
from vits_trainer.models.conversion.onnx import compare_onnx, export_onnx
from vits_trainer.models.conversion.onnx_packages import require_packages
from vits_trainer.models.conversion.players import (
    compare_player_file,
    export_player_file,
    file_stem,
    player_notes,
    write_piper_settings,
    write_sherpa_tokens,
)
from vits_trainer.models.voice_versions import check_voice_destination, exclusive
from vits_trainer.utils import files
from vits_trainer.utils.errors import ConfigError


def run(config: ConvertConfig) -> int:
    """Converts the voice and prints what could not be converted.

    Raises:
        ConfigError: the output exists or cannot be written.
        InstallationError: packages for ONNX are missing.
        ModelError: the input cannot be read, or has parts that cannot be converted. The message names them.
    """
    output = _output(config)
    if config.to in ONNX_FORMATS:
        require_packages()
    voice = importer.import_voice(
        config.input,
        config.from_format,
        Path(config.config_file) if config.config_file else None,
        Path(config.vocab) if config.vocab else None,
        config.discriminator,
    )
    parameters = sum(parameter.numel() for parameter in voice.model.parameters())
    discriminators = "no discriminators" if voice.discriminator is None else "with discriminators"
    kind = "transformers" if voice.kind == "hf" else voice.kind
    print(f"{config.input}: {kind}, {parameters / 1e6:.1f} M parameters, {discriminators}")
    for note in voice.notes:
        print(f"note: {note}")
    with exclusive(output):
        _require_absent(output)  # again, now that the path is locked
        try:
            _write(voice, config, output)
        except OSError as error:
            raise _unwritable(output, error) from error
    print(f"Converted voice: {output}")
    return 0


def _write(voice: importer.ImportedVoice, config: ConvertConfig, output: Path) -> None:
    if config.to == "hf":
        pretrained.export(voice.model, voice.tokenizer, voice.discriminator, output)
        return
    if config.to == "original":
        export_original.write_original(voice.model, voice.tokenizer, voice.discriminator, output)
        return
    stores_half = config.precision == "fp16"
    model = rounded_to_half(voice.model) if stores_half else voice.model
    with files.temporary_sibling_dir(output) as directory:
        if config.to == "onnx":
            written, file = directory / output.name, directory / output.name
            export_onnx(model, voice.tokenizer, file, stores_half)
            comparison = compare_onnx(model, file)
        else:
            written = directory
            file = _write_for_player(voice, model, config, directory, output.name)
            comparison = compare_player_file(model, file)
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB; {comparison}")
        if stores_half:
            print(f"note: {describe_rounding(voice.model, model)}")
        files.put(written, output)


def _write_for_player(
    voice: importer.ImportedVoice, model: VitsModel, config: ConvertConfig, directory: Path, name: str
) -> Path:
    language = config.language or voice.tokenizer.language
    if language is None:
        raise ConfigError("The voice does not state its language, which players need: give --language, such as ku.")
    stem = file_stem(model, language, name.removesuffix(f"-{config.to}"))
    file = directory / f"{stem}.onnx"
    export_player_file(model, voice.tokenizer, language, file, config.precision == "fp16")
    if config.to == "piper":
        write_piper_settings(model, voice.tokenizer, language, file)
    else:
        write_sherpa_tokens(model, voice.tokenizer, directory / "tokens.txt")
    for note in player_notes(voice.tokenizer, config.to):
        print(f"note: {note}")
    return file


def _unwritable(output: Path, error: OSError) -> ConfigError:
    return ConfigError(f"--output {output} cannot be written ({error.strerror or error}). Choose another path.")


def _output(config: ConvertConfig) -> Path:
    if config.output is not None:
        output = Path(config.output)
    else:
        source = Path(config.input.rstrip("/"))
        name = (source.stem if source.suffix in (".pth", ".ckpt", ".onnx", ".safetensors") else source.name) or "voice"
        output = Path(f"{name}.onnx" if config.to == "onnx" else f"{name}-{config.to}")
    if config.to == "onnx" and output.suffix != ".onnx":
        raise ConfigError(f"--output {output}: must end with .onnx.")
    _require_absent(output)
    check_voice_destination(output, "output", {})
    return output


def _require_absent(output: Path) -> None:
    try:
        exists = output.exists() or output.is_symlink()
    except OSError as error:
        raise _unwritable(output, error) from error
    if exists:
        raise ConfigError(f"--output {output} already exists. Choose another path, or delete it.")
