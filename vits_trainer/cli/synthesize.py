"""``synthesize``: synthesizes a text to an audio file."""

import sys
import time
from pathlib import Path

import transformers

from vits_trainer.config.voices import SynthesizeConfig
from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice, join, join_timings, write_speech
from vits_trainer.utils.errors import ConfigError, DataError


def run(config: SynthesizeConfig) -> int:
    """Writes the speech, and prints its duration and the real-time factor."""
    text = read_text(config)
    transformers.utils.logging.disable_progress_bar()
    voice = Voice(config.model)
    options = SynthesisOptions(
        speaker=voice.full_speaker_name(config.speaker),
        speaking_rate=config.speaking_rate,
        noise_scale=config.noise_scale,
        noise_scale_duration=config.noise_scale_duration,
        seed=config.seed,
    )
    start_s = time.perf_counter()
    pieces = list(voice.speak_pieces(text, options))
    elapsed_s = time.perf_counter() - start_s
    samples = join([piece.samples for piece in pieces], voice.sampling_rate)
    write_speech(Path(config.output), samples, voice.sampling_rate)
    if config.timings is not None:
        join_timings(pieces, voice.sampling_rate).save(config.timings)
    audio_s = len(samples) / voice.sampling_rate
    count = f"{len(pieces)} piece{'s' if len(pieces) > 1 else ''}"
    print(f"{config.output}: {audio_s:.2f} s of audio, real-time factor {elapsed_s / audio_s:.3f}, {count}")
    return 0


def read_text(config: SynthesizeConfig) -> str:
    """Returns ``--text``, else the content of ``--text_file``, else standard input, decoded as UTF-8.

    Raises:
        ConfigError: no text is given and standard input is a terminal, or the file cannot be read.
        DataError: the content is not UTF-8.
    """
    if config.text:
        return config.text
    if config.text_file is None and sys.stdin.isatty():
        raise ConfigError("No text: give --text or --text_file, or pipe the text to standard input.")
    source = config.text_file or "standard input"
    try:
        content = sys.stdin.buffer.read() if config.text_file is None else Path(config.text_file).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--text_file {source}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
