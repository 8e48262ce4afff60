"""What a run is told: one frozen dataclass a command. No torch in here, so that a wrong flag is answered at once.

The docstring under a field is its ``--help``. Whatever can be wrong with a value by itself is refused in
``__post_init__``; what depends on the machine or the data is decided later, in ``runtime`` and ``trainer.Plan``,
and never written back here.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from vits_trainer.errors import ConfigError

RECIPES_DIR = Path(__file__).parent / "recipes"

Precision = Literal["auto", "fp32", "bf16", "fp16"]
ObjectiveKind = Literal["vits", "mel"]


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
    """An LJ Speech folder, an extracted Common Voice release, or a Parquet file, folder or pattern."""
    output_dir: str = "training"
    """The prepared folder to write: wavs/, metadata.csv, rejected.csv, dataset.json."""
    target_sr: int = 16000
    """Sampling rate to write, in Hz: the rate of the model that will be trained."""
    max_samples: int = 0
    """Stop after this many good clips (0 = all)."""
    min_upvotes: int = 2
    """Common Voice: fewer up-votes than this reject a clip."""
    max_downvotes: int = 0
    """Common Voice: more down-votes than this reject a clip."""
    processes: int = 0
    """Worker processes (0 = one for each core)."""

    def __post_init__(self) -> None:
        require(8000 <= self.target_sr <= 192_000, f"--target_sr {self.target_sr}: give a rate from 8000 to 192000 Hz.")
        for name in ("max_samples", "min_upvotes", "max_downvotes", "processes"):
            require(getattr(self, name) >= 0, f"--{name} {getattr(self, name)}: give 0 or more.")


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
    """Chance to skip a layer of the text encoder. VITS has none; transformers' configurations carry 0.1, which
    breaks training on several GPUs."""

    architecture: Architecture | None = None
    """The generator to train from scratch; needs model_name null."""
    discriminator: DiscriminatorShape = DiscriminatorShape()
    """Size of the discriminators, where they start fresh."""

    precision: Precision = "auto"
    """fp32, bf16, fp16, or auto: bf16 on GPUs that have it, else fp32. The old --fp16 means fp16."""
    seed: int = 1234
    """Seed of everything random: the order of clips, segments, noise, dropout, fresh weights."""
    data_workers: int = 2
    """Processes that decode clips, for each training process (0 = decode in the training process)."""

    validation_fraction: float = 0.05
    """Share of the clips held out for validation (at least one, at most validation_max_clips; 0 = none)."""
    validation_max_clips: int = 64
    """At most this many clips are held out."""
    validate_every_updates: int = 500
    """Updates between validations; there is one at the end in any case (0 = only there)."""
    log_every_updates: int = 10
    """Updates between log lines."""
    save_every_updates: int = 500
    """Updates between checkpoints; there is one at the end in any case (0 = only there)."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints to keep (0 = all)."""
    resume_from_checkpoint: str | None = None
    """latest, or the path of a checkpoint, to go on from there."""

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
            "max_grad_norm",
            "weight_decay",
            "seed",
        ):
            require(getattr(self, name) >= 0, f"--{name} {getattr(self, name)}: give 0 or more.")
        require(self.learning_rate > 0, f"--learning_rate {self.learning_rate}: give a number above 0, such as 2e-5.")
        require(
            0 < self.learning_rate_decay <= 1,
            f"--learning_rate_decay {self.learning_rate_decay}: give a number above 0 and at most 1.",
        )
        require(
            0 <= self.validation_fraction < 1,
            f"--validation_fraction {self.validation_fraction}: give a number from 0 to below 1.",
        )
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
class CheckConfig:
    """Prove on this machine that training works."""

    golden: str | None = None
    """Folder of golden values (CASE.json with CASE.safetensors): compare losses and gradient norms with them."""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values that YAML and JSON hold (tuples become lists)."""
    return {key: _plain(value) for key, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


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
