"""Configuration of synthesize, evaluate, export and convert. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vits_trainer.config.options import AUTO, SCORES, SPEECH_FORMATS, TIMING_FORMATS
from vits_trainer.config.ranges import MAX_SEED, check_ranges, limited
from vits_trainer.config.serialization import split_names
from vits_trainer.utils.errors import require

PLAYERS = ("piper", "sherpa")
"""Formats of convert for players."""
ONNX_FORMATS = ("onnx", *PLAYERS)


@dataclass(frozen=True)
class SynthesizeConfig:
    """Synthesize a text of any length to an audio file."""

    model: str = "training/final_model"
    """The voice: a local folder or a Hub name."""
    text: str = ""
    """Text to speak (without --text and --text_file: standard input)."""
    text_file: str | None = None
    """UTF-8 file with the text to speak."""
    output: str = "speech.wav"
    """Path of the audio file; an existing file is overwritten. Extensions: .wav (16 bits), .flac, .mp3, .ogg."""
    timings: str | None = None
    """File for the times of sentences, words and tokens: .json, or .srt for subtitles. An existing file is
    overwritten."""
    speaker: str | None = None
    """Name, beginning of the name, or number of the speaker of a multi-speaker voice (null = the first)."""
    speaking_rate: float | None = None
    """Speaking rate: 2 is twice as fast, 0.5 is half as fast (null = the voice's default)."""
    noise_scale: float | None = None
    """Variation of the sound, 0 for none (null = the voice's default, usually 0.667)."""
    noise_scale_duration: float | None = None
    """Variation of the rhythm, 0 for none (null = the voice's default, usually 0.8)."""
    seed: int = limited(1234, 0, MAX_SEED)
    """Random seed. The same seed gives the same samples on the same kind of device."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            not self.text or self.text_file is None,
            f"--text and --text_file {self.text_file} exclude each other: give only one.",
        )
        require(
            Path(self.output).suffix.lower() in SPEECH_FORMATS,
            f"--output {self.output}: must end with one of {', '.join(SPEECH_FORMATS)}.",
        )
        require(
            self.timings is None or Path(self.timings).suffix.lower() in TIMING_FORMATS,
            f"--timings {self.timings}: must end with {' or '.join(TIMING_FORMATS)}.",
        )
        require(
            self.speaking_rate is None or 0.1 <= self.speaking_rate <= 10,
            f"--speaking_rate {self.speaking_rate}: must be between 0.1 and 10.",
        )
        for name in ("noise_scale", "noise_scale_duration"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 10, f"--{name} {value}: must be between 0 and 10.")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate voices: synthesize the texts of validation clips and compare the speech with the recordings."""

    models: str = "training/final_model"
    """Voices separated by commas: folders or Hub names, or folders of audio files named as the clips (speech of any
    other system). The first one is the baseline of the comparison."""
    data_dir: str = "training"
    """Prepared folder with the recordings."""
    clips: Literal["held_out", "all"] = "held_out"
    """held_out: the validation clips of train_vits with the same seed and validation_fraction. all: every clip."""
    max_clips: int = limited(64, 0)
    """Maximum number of clips to evaluate (0 = all)."""
    only_speakers: str = ""
    """As in training: speakers whose clips are evaluated, separated by commas (empty = all)."""
    validation_fraction: float = 0.05
    """As in training. Determines, with seed, which clips are validation clips."""
    validation_max_clips: int = limited(64, 0)
    """As in training."""
    seed: int = limited(1234, 0, MAX_SEED)
    """As in training. Also seeds the synthesis."""
    scores: str = "mcd,f0,duration,cer"
    """Scores to compute, separated by commas, of {scores}. docs/metrics.md explains them; utmos and similarity need
    their packages (utmos-pytorch, resemblyzer)."""
    asr: str = AUTO
    """Speech recognizer for cer. auto, for English: whisper-tiny.en where vits-trainer[asr] is installed, else
    pocketsphinx. Or whisper-SIZE, or a model of transformers or faster-whisper (folder or Hub name)."""
    language: str | None = None
    """Language of the texts, such as de or deu (null = that of the first voice)."""
    output_dir: str = "evaluation"
    """Folder for scores.json and the synthesized speech."""
    report_to: Literal["none", "wandb"] = "none"
    """wandb: also log the metrics and the worst clips as a Weights & Biases run."""
    wandb_project: str = "vits_trainer"
    """Weights & Biases project. Without an API key the run is logged offline, to be synced later."""
    wandb_entity: str | None = None
    """Weights & Biases team or user (null = your default)."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            bool(split_names("scores", self.scores, SCORES)),
            "--scores is empty: give at least one of " + ", ".join(SCORES),
        )
        require(bool(self.names), "--models is empty: give at least one voice.")
        require(len(set(self.names)) == len(self.names), f"--models {self.models}: contains a voice twice.")
        require(
            0 < self.validation_fraction < 1,
            f"--validation_fraction {self.validation_fraction}: must be above 0 and below 1 (or use --clips all).",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the voices."""
        return tuple(name.strip() for name in self.models.split(",") if name.strip())


@dataclass(frozen=True)
class ExportConfig:
    """Export a checkpoint as a voice, as at the end of a run: vits-trainer export CHECKPOINT."""

    checkpoint: str = field(metadata={"example": "training/checkpoints/checkpoint-500"})
    """The checkpoint-<update> folder."""
    output_dir: str | None = None
    """Folder for the voice (null = exported/checkpoint-<update>, next to the checkpoint folder). A previous voice there
    is moved to <output_dir>_versions; any other content is an error."""
    keep_versions: int = limited(5, 0)
    """Number of previous voices of output_dir to keep (0 = all)."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a voice of another trainer for transformers and train_vits, or a voice for other programs.

    Reads voices of original VITS, MMS-TTS, finetune-hf-vits, Coqui TTS and Piper. Parts that cannot be converted are
    reported, and pickles are read without executing code in them.
    """

    input: str = field(metadata={"example": "G_100000.pth"})
    """A checkpoint (G_*.pth, model_file.pth, *.ckpt), a Piper voice (*.onnx), a folder with one, or a transformers
    voice (folder or Hub name)."""
    output: str | None = None
    """Path of the result, which must not exist (null = the input's name with .onnx, or with - and the format, in the
    current folder)."""
    from_format: Literal["auto", "hf", "original", "coqui", "piper"] = field(default="auto", metadata={"short": "from"})
    """Layout of the input, also spelled --from. original: VITS and MMS-TTS. hf: transformers and finetune-hf-vits.
    auto: detect it."""
    to: Literal["hf", "original", "onnx", "piper", "sherpa"] = "hf"
    """hf: a folder for transformers and train_vits. original: G_0.pth with config.json. onnx: one file for onnxruntime.
    piper: a folder with .onnx and .onnx.json, for Piper and Home Assistant. sherpa: with tokens.txt, for sherpa-onnx.
    The output of .onnx files is compared with PyTorch's."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Of the weights in an .onnx file. fp16 halves the file; it is computed in float32 all the same."""
    language: str | None = None
    """Language of the voice for piper and sherpa, such as ku, eng or en_US (null = the one that the voice states)."""
    config_file: str | None = None
    """Configuration of the input (null = config.json, or of an .onnx file its .onnx.json, next to it)."""
    vocab: str | None = None
    """Symbols of the input if its own files lack them: vocab.txt (one per line, in the order of their ids) or
    vocab.json (null = the one next to it)."""
    discriminator: str | None = None
    """Discriminators of the input: a D_*.pth, a discriminator.safetensors or a voice that contains them (null = the D_*
    of the same number next to the input, or those inside it)."""

    def __post_init__(self) -> None:
        require(
            self.precision == "fp32" or self.to in ONNX_FORMATS,
            f"--precision {self.precision}: only for --to {', '.join(ONNX_FORMATS)}.",
        )
        require(
            self.language is None or self.to in PLAYERS,
            f"--language {self.language}: only for --to {' and '.join(PLAYERS)}; others keep the voice's.",
        )
