"""What a run is told: one frozen dataclass a command. No torch in here, so that a wrong flag is answered at once.

The docstring under a field is its ``--help``. Whatever can be wrong with a value by itself is refused in
``__post_init__``; what depends on the machine or the data is decided later, in ``runtime`` and ``trainer.Plan``,
and never written back here.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from vits_trainer.errors import ConfigError

RECIPES_DIR = Path(__file__).parent / "recipes"

Precision = Literal["auto", "fp32", "bf16", "fp16"]
ObjectiveKind = Literal["vits", "mel"]


SPEECH_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG"}
"""Endings of the files that synthesize writes, and libsndfile's names for them."""


def require(condition: bool, message: str) -> None:
    """Raises :class:`ConfigError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class LossWeights:
    """Weight of each loss in ``generator/total``; the logged losses themselves are unweighted."""

    adversarial: float = 1.0
    """Least-squares GAN loss."""
    feature_matching: float = 1.0
    """L1 between the discriminators' activations; the loss itself contains VITS's factor 2."""
    mel: float = 45.0
    """L1 between log-mel spectrograms."""
    duration: float = 1.0
    """Negative log-likelihood of the durations found by the alignment search."""
    kl: float = 1.0
    """Kullback-Leibler divergence of the posterior from the prior."""


@dataclass(frozen=True)
class Architecture:
    """A generator to train from scratch, in the words of ``transformers.VitsConfig``; the defaults are MMS-TTS's."""

    sampling_rate: int = 16000
    """Samples per second of the voice."""
    hidden_size: int = 192
    """Channels of the text encoder, the WaveNets and the duration predictor; also the size of the latent frames."""
    num_hidden_layers: int = 6
    """Transformer layers of the text encoder."""
    num_attention_heads: int = 2
    """Attention heads of the text encoder."""
    ffn_dim: int = 768
    """Channels of the text encoder's feed-forward layers."""
    spectrogram_bins: int = 513
    """Bins of the linear spectrogram: n_fft / 2 + 1."""
    posterior_encoder_num_wavenet_layers: int = 16
    """WaveNet layers of the posterior encoder."""
    prior_encoder_num_flows: int = 4
    """Coupling layers of the flow."""
    prior_encoder_num_wavenet_layers: int = 4
    """WaveNet layers in each coupling layer."""
    use_stochastic_duration_prediction: bool = True
    """Stochastic duration predictor (VITS's own) rather than the plain one."""
    duration_predictor_num_flows: int = 4
    """Spline flows of the stochastic duration predictor."""
    upsample_initial_channel: int = 512
    """Channels at the decoder's entry."""
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    """Upsampling of the decoder's stages; their product is the hop, in samples."""
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 4, 4)
    """Kernel of each upsampling stage."""
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    """Kernels of the decoder's residual blocks."""
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    """Dilations of the decoder's residual blocks."""


@dataclass(frozen=True)
class DiscriminatorShape:
    """Size of the discriminators (VITS: one over the scale, five over periods; 46.7 M parameters)."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """Periods, in samples, of the multi-period discriminators."""
    channels_divisor: int = 1
    """Divides every width; 1 is VITS's size, which pretrained discriminators need."""


@dataclass(frozen=True)
class PrepareConfig:
    """Recordings and their texts, from wherever they are, into one folder that ``train_vits`` reads."""

    dataset: str = "amedcj/kurmanji-commonvoice"
    """An LJ Speech folder, an audio folder (metadata.csv with a header file_name,text), an extracted Common Voice
    release, a Parquet file, folder or pattern, or the name of a data set on the Hugging Face Hub (owner/name)."""
    split: str = "train"
    """Hub: the split to read, or several as train+validated; elsewhere unused."""
    config_name: str | None = None
    """Hub: the data set's configuration, such as a language (null = its only or default one)."""
    revision: str | None = None
    """Hub: branch, tag or commit to read (null = its main branch)."""
    text_column: str | None = None
    """Column of the texts (null = sentence, else text)."""
    audio_column: str | None = None
    """Column of the recordings or their files (null = audio, else path; in an audio folder file_name)."""
    speaker_column: str | None = None
    """Column of the speakers (null = client_id, else speaker_id, else speaker, where there is one)."""
    output_dir: str = "training"
    """The prepared folder to write: wavs/, metadata.csv, rejected.csv, dataset.json."""
    target_sr: int = 16000
    """Sampling rate to write, in Hz: the rate of the model that will be trained."""
    max_samples: int = 0
    """Stop after this many good clips (0 = all)."""
    min_upvotes: int = 2
    """Common Voice: fewer up-votes than this reject a clip (0 = off)."""
    max_downvotes: int = 0
    """Common Voice: more down-votes than this reject a clip."""
    trim_silence: bool = False
    """Cut the silence at both ends of each clip: what is 40 dB below its loudest 20 ms, all but 50 ms of it
    (false = off)."""
    min_duration_s: float = 0.1
    """Clips shorter than this, in seconds after trimming, are rejected (0.1 is the least that can be trained on)."""
    max_duration_s: float = 60.0
    """Clips longer than this, in seconds after trimming, are rejected (at most 300)."""
    min_loudness_dbfs: float | None = None
    """Clips whose RMS is below this, in dB relative to full scale, such as -50, are rejected (null = off)."""
    loudness_dbfs: float | None = None
    """Bring each clip's RMS to this, in dB relative to full scale, such as -23; clips whose peak would reach full scale
    stay softer (null = off: each stays as loud as it is)."""
    processes: int = 0
    """Worker processes (0 = one for each core)."""

    def __post_init__(self) -> None:
        require(8000 <= self.target_sr <= 192_000, f"--target_sr {self.target_sr}: give a rate from 8000 to 192000 Hz.")
        for name in ("max_samples", "min_upvotes", "max_downvotes", "processes"):
            require(getattr(self, name) >= 0, f"--{name} {getattr(self, name)}: give 0 or more.")
        require(
            0.1 <= self.min_duration_s < self.max_duration_s <= 300,
            f"--min_duration_s {self.min_duration_s} --max_duration_s {self.max_duration_s}: give at least 0.1 s, at "
            "most 300 s, and the lesser one first.",
        )
        for name in ("min_loudness_dbfs", "loudness_dbfs"):
            dbfs = getattr(self, name)
            require(dbfs is None or -100 <= dbfs <= 0, f"--{name} {dbfs}: give -100 to 0 dB, or null for off.")
        for name in ("split", "config_name", "revision", "text_column", "audio_column", "speaker_column"):
            require(getattr(self, name) != "", f"--{name} is empty: give a name, or leave it out.")


@dataclass(frozen=True)
class TrainConfig:
    """Train or fine-tune a voice on a prepared folder; the result loads in ``transformers`` as it is."""

    data_dir: str = "training"
    """The folder that prepare_data wrote."""
    checkpoint_dir: str = "training/checkpoints"
    """Where checkpoint-<update>/ folders go."""
    output_dir: str = "training/final_model"
    """Where the trained voice goes; transformers' VitsModel and pipeline load it as it is."""
    model_name: str | None = "facebook/mms-tts-kmr-script_latin"
    """The voice to start from: a Hub name or a local folder; null (with an architecture) trains from scratch."""
    runs_dir: str | None = None
    """Where the run's record goes, in a folder of the run's name (null = runs/ in the data folder)."""
    run_name: str | None = None
    """Name of the run (null = train_vits- and the start time; a resumed run keeps its name)."""

    batch_size: int = 4
    """Clips in a micro-batch, for each process."""
    batch_seconds: float = 0.0
    """Seconds of audio, with its padding, in a micro-batch, for each process, instead of batch_size (0 = batch_size
    decides)."""
    gradient_accumulation_steps: int = 8
    """Micro-batches in an update."""
    learning_rate: float = 2e-5
    """AdamW's learning rate at the start, for both networks."""
    learning_rate_decay: float = 0.999875
    """Factor on the learning rate at each epoch's end (VITS: 0.999 ** (1/8))."""
    epochs: int = 10
    """Passes over the training clips."""
    max_updates: int = 0
    """Train for this many updates, whatever the epochs say (0 = by epochs)."""
    target_hours: float = 0.0
    """Train for about this many hours: chooses the epochs from the speed measured at the start (0 = by epochs)."""
    max_samples: int = 0
    """Use only this many clips of the folder (0 = all)."""

    objective: ObjectiveKind = "vits"
    """vits: the whole VITS objective. mel: the differentiable mel loss and the durations alone, without
    discriminators, for small GPUs and quick runs."""
    loss_weights: LossWeights = LossWeights()
    """Weight of each loss in the generator's total."""
    segment_frames: int = 32
    """Length of the segments that are decoded in training, in spectrogram frames."""
    max_grad_norm: float = 0.0
    """Clip each network's gradient to this norm (0 = only measure it, as VITS does)."""
    adam_betas: tuple[float, float] = (0.8, 0.99)
    """AdamW's decay rates."""
    adam_eps: float = 1e-9
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    layerdrop: float = 0.0
    """Chance to skip a layer of the text encoder, on one process only. VITS has none; transformers' configurations
    carry 0.1."""

    architecture: Architecture | None = None
    """The generator to train from scratch; needs model_name null."""
    discriminator: DiscriminatorShape = DiscriminatorShape()
    """Size of the discriminators, where they start fresh."""
    discriminator_warmup_updates: int | None = None
    """Updates in which the discriminators learn alone, before the generator learns from them (null = where fresh
    discriminators meet a trained voice 200, but at most a tenth of the run; else 0)."""

    precision: Precision = "auto"
    """fp32, bf16, fp16, or auto: bf16 on GPUs that have it, else fp32. The old --fp16 means fp16."""
    seed: int = 1234
    """Seed of everything random: the order of clips, segments, noise, dropout, fresh weights."""
    deterministic: bool = False
    """On a GPU, use kernels that repeat their results, which are slower: a resumed run then ends with the very weights
    of an uninterrupted one. On a CPU it does so anyway."""
    compile: bool = False
    """Compile decoder and discriminators, whose shapes are fixed: their first update takes minutes, the others less."""
    gradient_checkpointing: bool = False
    """Compute the generator's activations again in the backward pass instead of keeping them: less memory, slower."""
    data_workers: int = 2
    """Processes that decode clips, for each training process (0 = decode in the training process)."""

    max_rejected_fraction: float = 0.01
    """More clips than this part of all that cannot be used end the run."""
    max_nonfinite_updates: int = 3
    """More updates than this in a row whose losses or gradients are no finite numbers end the run; each is masked."""
    rank_timeout_s: float = 600.0
    """So long the processes wait for one another, in seconds; then those that are missing are named, and the run ends.
    Saving, and speaking samples, must be done within it."""

    validation_fraction: float = 0.05
    """Share of the clips held out for validation (at least one, at most validation_max_clips; 0 = none)."""
    validation_max_clips: int = 64
    """At most this many clips are held out."""
    validate_on_training_clips: bool = False
    """Judge the voice by clips that it trains on, from before the first update (for a handful of corrections)."""
    validation_samples: int = 2
    """How many of the held-out sentences to speak and picture at each validation (0 = none)."""
    validate_every_updates: int = 500
    """Updates between validations; there is one at the end in any case (0 = only there)."""
    log_every_updates: int = 10
    """Updates between log lines."""
    save_every_updates: int = 500
    """Updates between checkpoints; there is one at the end in any case (0 = only there)."""
    save_before_s: float = 0.0
    """Save and stop before the process is this many seconds old, for a job's time limit (0 = no limit)."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints to keep, beside the best one (0 = all)."""
    resume_from_checkpoint: str | None = None
    """Where to go on from: latest; auto (the latest, or a new run where there is none); best; or a checkpoint's
    path."""

    wandb_project: str = "vits_trainer"
    """Weights & Biases project. Without an API key the run is kept offline, to be synced later."""
    wandb_entity: str | None = None
    """Weights & Biases team or user (null = your default)."""
    wandb_tags: tuple[str, ...] = ()
    """Weights & Biases tags, as [a, b]."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation_steps", "epochs", "log_every_updates", "segment_frames"):
            require(getattr(self, name) >= 1, f"--{name} {getattr(self, name)}: give 1 or more.")
        for name in (
            "max_updates",
            "max_samples",
            "data_workers",
            "validate_every_updates",
            "save_every_updates",
            "keep_checkpoints",
            "validation_max_clips",
            "validation_samples",
            "max_grad_norm",
            "weight_decay",
            "seed",
            "target_hours",
            "batch_seconds",
            "save_before_s",
            "max_nonfinite_updates",
        ):
            require(getattr(self, name) >= 0, f"--{name} {getattr(self, name)}: give 0 or more.")
        require(
            (self.discriminator_warmup_updates or 0) >= 0,
            f"--discriminator_warmup_updates {self.discriminator_warmup_updates}: give 0 or more, or null.",
        )
        require(
            not (self.target_hours and self.max_updates),
            "--target_hours and --max_updates both say how long to train: give one of them.",
        )
        require(self.learning_rate > 0, f"--learning_rate {self.learning_rate}: give a number above 0, such as 2e-5.")
        require(
            0 < self.learning_rate_decay <= 1,
            f"--learning_rate_decay {self.learning_rate_decay}: give a number above 0 and at most 1.",
        )
        require(
            0 <= self.validation_fraction < 1,
            f"--validation_fraction {self.validation_fraction}: give a number from 0 to below 1.",
        )
        require(
            0 <= self.max_rejected_fraction <= 1,
            f"--max_rejected_fraction {self.max_rejected_fraction}: give a number from 0 to 1.",
        )
        require(self.rank_timeout_s >= 1, f"--rank_timeout_s {self.rank_timeout_s}: give 1 or more.")
        require(0 <= self.layerdrop < 1, f"--layerdrop {self.layerdrop}: give a number from 0 to below 1.")
        if self.architecture is None:
            require(
                bool(self.model_name),
                "--model_name is empty: name the voice to start from, or train from scratch with --config tiny.",
            )
        else:
            require(
                self.model_name is None,
                f"--model_name {self.model_name} and an architecture to train from scratch exclude one another: "
                "leave out the architecture (or the recipe that brings it), or give --model_name null.",
            )


@dataclass(frozen=True)
class FeedbackConfig:
    """Learn users' corrections of a voice: NAME.wav with NAME.txt in a folder, into a new voice beside the old one."""

    feedback_dir: str = "training/feedback"
    """The corrections: NAME.wav (or flac, mp3, ogg), how it should sound, with NAME.txt, its text."""
    model_dir: str = "training/final_model"
    """The voice that is served; it is left as it is."""
    output_dir: str = "training/feedback_model"
    """Where the new voice goes. What training it leaves behind goes to the folder of this name with _work behind it."""
    base_model: str = "facebook/mms-tts-kmr-script_latin"
    """The voice to start from where model_dir holds none."""
    batch_size: int = 2
    """Corrections in an update, for each process."""
    learning_rate: float = 1e-5
    """AdamW's learning rate: low, as few clips must not change the rest of the voice."""
    epochs: int = 5
    """Passes over the corrections."""
    precision: Precision = "auto"
    """fp32, bf16, fp16, or auto: bf16 on GPUs that have it, else fp32. The old --fp16 means fp16."""
    seed: int = 1234
    """Seed of everything random."""
    run_name: str | None = None
    """Name of the run (null = train_vits- and the start time)."""
    wandb_project: str = "vits_trainer"
    """Weights & Biases project. Without an API key the run is kept offline, to be synced later."""
    wandb_entity: str | None = None
    """Weights & Biases team or user (null = your default)."""
    wandb_tags: tuple[str, ...] = ()
    """Weights & Biases tags, as [a, b]."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            require(getattr(self, name) >= 1, f"--{name} {getattr(self, name)}: give 1 or more.")
        require(self.learning_rate > 0, f"--learning_rate {self.learning_rate}: give a number above 0, such as 1e-5.")


@dataclass(frozen=True)
class ExportConfig:
    """Make a voice of a checkpoint, as the end of a run does: vits-trainer export CHECKPOINT."""

    checkpoint: str = field(metadata={"example": "training/checkpoints/checkpoint-500"})
    """The checkpoint-<update> folder."""
    output_dir: str | None = None
    """Where the voice goes (null = exported/checkpoint-<update>, beside the folder of the checkpoints)."""


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


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values that YAML and JSON hold (tuples become lists)."""
    return {key: _plain(value) for key, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def save_config(config: Any, path: Path) -> None:
    """Writes ``config`` as YAML that ``--config`` reads back."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def recipe_path(name_or_file: str) -> Path:
    """The YAML file that ``--config`` means: a file, or the name of a recipe that comes with the package.

    Raises:
        ConfigError: neither exists; names the recipes.
    """
    as_file = Path(name_or_file).expanduser()
    as_recipe = RECIPES_DIR / f"{name_or_file.removesuffix('.yaml')}.yaml"
    for candidate in (as_file, as_recipe):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(path.stem for path in RECIPES_DIR.glob("*.yaml")))
    raise ConfigError(f"--config {name_or_file}: no such file, and no recipe of that name. Recipes: {names}.")
