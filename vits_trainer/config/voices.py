"""What the commands are told that use, judge and correct a voice: as in ``config.train``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vits_trainer.config.options import SCORES, SPEECH_FORMATS
from vits_trainer.config.serialization import listed
from vits_trainer.utils.errors import require


@dataclass(frozen=True)
class SynthesizeConfig:
    """Let a voice say a text, of any length, into an audio file."""

    model: str = "training/final_model"
    """The voice: a local folder or a Hub name."""
    text: str = ""
    """What to say (without this and --text_file: standard input)."""
    text_file: str | None = None
    """A UTF-8 file of what to say."""
    output: str = "speech.wav"
    """The file to write, overwritten if it exists; its ending decides the format: .wav (16 bits), .flac, .mp3, .ogg."""
    speaker: str | None = None
    """Name or number of the speaker, for voices with several (null = the first)."""
    speaking_rate: float | None = None
    """2 speaks twice as fast, 0.5 at half speed (null = the voice's own)."""
    noise_scale: float | None = None
    """Variation of the sound; 0 has none (null = the voice's own, mostly 0.667)."""
    noise_scale_duration: float | None = None
    """Variation of the rhythm; 0 has none (null = the voice's own, mostly 0.8)."""
    seed: int = 1234
    """The same seed speaks the same samples on the same kind of device."""

    def __post_init__(self) -> None:
        require(
            not self.text or self.text_file is None,
            f"--text and --text_file {self.text_file} exclude one another: give one of them.",
        )
        require(
            Path(self.output).suffix.lower() in SPEECH_FORMATS,
            f"--output {self.output}: give a name that ends with {', '.join(SPEECH_FORMATS)}.",
        )
        require(
            self.speaking_rate is None or 0.1 <= self.speaking_rate <= 10,
            f"--speaking_rate {self.speaking_rate}: give a number from 0.1 to 10.",
        )
        for name in ("noise_scale", "noise_scale_duration"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 10, f"--{name} {value}: give a number from 0 to 10.")
        require(self.seed >= 0, f"--seed {self.seed}: give 0 or more.")


@dataclass(frozen=True)
class EvaluateConfig:
    """Judge voices by held-out clips: each says their texts, and that is compared with the recordings."""

    models: str = "training/final_model"
    """The voices, separated by commas: folders or Hub names; or folders of WAV files named as the clips (speech of
    any other system). The first one is what the others are compared with."""
    data_dir: str = "training"
    """The prepared folder with the recordings."""
    clips: Literal["held_out", "all"] = "held_out"
    """held_out: those that train_vits holds out under the same seed and validation_fraction. all: every clip."""
    max_clips: int = 64
    """At most this many clips are judged (0 = all)."""
    validation_fraction: float = 0.05
    """As in training: which clips are held out depends on it."""
    validation_max_clips: int = 64
    """As in training."""
    seed: int = 1234
    """As in training; also of what the voices vary."""
    scores: str = "mcd,f0,duration,cer"
    """What to judge by: mcd (mel-cepstral distance), f0 (log F0 RMSE, voicing error), duration, cer (and wer), utmos
    and similarity where their packages are installed (utmos-pytorch, resemblyzer)."""
    asr: str = "pocketsphinx"
    """What listens for cer: pocketsphinx (English, offline), or a speech recognition model of transformers."""
    output_dir: str = "evaluation"
    """Where scores.json goes, and what each voice said."""
    report_to: Literal["none", "wandb"] = "none"
    """wandb: the figures and the worst clips as a Weights & Biases run, too."""
    wandb_project: str = "vits_trainer"
    """Weights & Biases project. Without an API key the run is kept offline, to be synced later."""
    wandb_entity: str | None = None
    """Weights & Biases team or user (null = your default)."""

    def __post_init__(self) -> None:
        require(bool(listed("scores", self.scores, SCORES)), "--scores is empty: give some of " + ", ".join(SCORES))
        require(bool(self.names), "--models is empty: give a voice.")
        require(len(set(self.names)) == len(self.names), f"--models {self.models}: one comes twice.")
        for name in ("max_clips", "validation_max_clips", "seed"):
            require(getattr(self, name) >= 0, f"--{name} {getattr(self, name)}: give 0 or more.")
        require(
            0 < self.validation_fraction < 1,
            f"--validation_fraction {self.validation_fraction}: give a number between 0 and 1 (or --clips all).",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the voices."""
        return tuple(name.strip() for name in self.models.split(",") if name.strip())


@dataclass(frozen=True)
class ExportConfig:
    """Make a voice of a checkpoint, as the end of a run does: vits-trainer export CHECKPOINT."""

    checkpoint: str = field(metadata={"example": "training/checkpoints/checkpoint-500"})
    """The checkpoint-<update> folder."""
    output_dir: str | None = None
    """Where the voice goes (null = exported/checkpoint-<update>, beside the folder of the checkpoints). A voice that is
    there becomes a version, in <output_dir>_versions; anything else there is refused."""
    keep_versions: int = 5
    """How many of the voices that stood in output_dir before are kept (0 = all)."""

    def __post_init__(self) -> None:
        require(self.keep_versions >= 0, f"--keep_versions {self.keep_versions}: give 0 or more.")


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a voice of another trainer for transformers and train_vits, or a voice for other programs.

    It comes from original VITS, MMS-TTS, finetune-hf-vits, Coqui TTS or Piper. What does not fit is named, and pickles
    are read without running what is in them.
    """

    input: str = field(metadata={"example": "G_100000.pth"})
    """The checkpoint (G_*.pth, model_file.pth, *.ckpt), a folder with one, or a voice for transformers (a folder or Hub
    name)."""
    output: str | None = None
    """Where the result goes; it must not exist (null = here, the input's name with -hf, -original or .onnx)."""
    from_format: Literal["auto", "hf", "original", "coqui", "piper"] = field(default="auto", metadata={"short": "from"})
    """Whose layout the input has, also spelled --from: original is MMS-TTS's as well, hf finetune-hf-vits's. auto finds
    out."""
    to: Literal["hf", "original", "onnx"] = "hf"
    """hf: a folder that transformers and train_vits load. original: G_0.pth with its config.json. onnx: one file that
    onnxruntime speaks with; it is held against PyTorch."""
    config_file: str | None = None
    """The input's own configuration (null = config.json beside it)."""
    vocab: str | None = None
    """The input's symbols, where its files do not say: vocab.txt, one a line in the order of their ids, or vocab.json
    (null = what lies beside it)."""
    discriminator: str | None = None
    """Its discriminators: a D_*.pth, a discriminator.safetensors or a voice that has them (null = D_* of the same
    number beside the input, or those inside it)."""
