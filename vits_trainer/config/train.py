"""Configuration of train_vits.

Imports no torch, so that invalid flags fail immediately. The docstring under a field is its ``--help``.
``__post_init__`` checks everything that does not depend on the machine or the data. ``distributed.runtime`` and
``training.plan`` check the rest; they do not modify the configuration.
"""

from dataclasses import dataclass, fields
from typing import ClassVar

from vits_trainer.config.architecture import Architecture, DecoderShape, DiscriminatorShape
from vits_trainer.config.options import AUTO, PARTS, SCORES, TRACKERS, ObjectiveKind, Precision, Schedule
from vits_trainer.config.ranges import MAX_SEED, check_ranges, limited
from vits_trainer.config.serialization import require_run_name, split_names
from vits_trainer.utils.errors import require

_NOT_STREAMED = {
    "batch_seconds": 0,
    "max_samples": 0,
    "speaker_temperature": 1,
    "validate_on_training_clips": False,
    "only_speakers": "",
    "max_clips_per_speaker": 0,
    "phonemes": False,
}
"""Fields that require the list of all clips, which streaming lacks, and their values when off."""

_UNPREPARED = ("split", "config_name", "revision", "text_column", "audio_column", "speaker_column", "max_duration_s")
"""Fields that describe a data set as it lies."""


@dataclass(frozen=True)
class LossWeights:
    """Weight of each loss in ``generator/total``. The losses are logged unweighted."""

    adversarial: float = limited(1.0, 0, 1e6)
    """Least-squares GAN loss."""
    feature_matching: float = limited(1.0, 0, 1e6)
    """L1 between the discriminators' feature maps. The loss already includes VITS's factor 2."""
    mel: float = limited(45.0, 0, 1e6)
    """L1 between log-mel spectrograms."""
    duration: float = limited(1.0, 0, 1e6)
    """Negative log-likelihood of the durations from the alignment search."""
    kl: float = limited(1.0, 0, 1e6)
    """KL divergence between posterior and prior."""
    multi_scale_mel: float = limited(0.0, 0, 1e6)
    """L1 between log-mel spectrograms with windows of 32 to 2048 samples (0 = not computed; the DAC codec: 91)."""

    def __post_init__(self) -> None:
        check_ranges(self, "loss_weights.")


VALIDATION_LOSSES = tuple(
    dict.fromkeys(("mel", "mel_from_text", *(field.name for field in fields(LossWeights)), "total"))
)
"""Names of the validation losses, logged as ``validation/<name>``."""


@dataclass(frozen=True)
class TrainConfig:
    """Train or fine-tune a voice on a prepared folder. The result loads in transformers without conversion."""

    COMMON_FLAGS: ClassVar = (
        "data_dir", "model_name", "output_dir", "batch_size", "learning_rate", "epochs", "max_updates", "precision",
        "resume_from_checkpoint", "push_to_hub",
    )  # fmt: skip
    HELP_SECTIONS: ClassVar = {
        "data_dir": "folders and names",
        "batch_size": "optimization",
        "split": "data",
        "objective": "objective",
        "layerdrop": "voice",
        "precision": "machine",
        "max_rejected_fraction": "limits",
        "validation_fraction": "validation",
        "log_every_updates": "logging and checkpoints",
        "report_to": "trackers and the Hub",
    }
    """Title of a section of ``--help``, by its first field."""

    data_dir: str = "training"
    """Folder that prepare_data wrote."""
    dataset: str | None = None
    """Instead of data_dir, with streaming: train on a data set as it lies, without prepare_data: Parquet with audio and
    texts (a file, a folder, a pattern or an fsspec URL), or a data set of the Hub (owner/name)."""
    checkpoint_dir: str = "training/checkpoints"
    """Folder for the checkpoint-<update>/ folders."""
    output_dir: str = "training/final_model"
    """Folder for the trained voice, in the format of transformers' VitsModel. A previous voice there is moved to
    <output_dir>_versions; a folder with other contents is rejected before training."""
    keep_versions: int = limited(5, 0)
    """Number of previous voices of output_dir to keep (0 = all)."""
    model_name: str | None = "facebook/mms-tts-kmr-script_latin"
    """Voice to start from: a Hub name or a local folder. null, with an architecture, trains from scratch."""
    runs_dir: str | None = None
    """Folder for metrics, samples and settings, in a subfolder named after the run (null = runs/ in data_dir)."""
    run_name: str | None = None
    """Name of the run (null = train_vits-<start time>). A resumed run keeps its name."""

    batch_size: int = limited(4, 1, 2**16)
    """Clips per micro-batch and process."""
    batch_seconds: float = limited(0.0, 0, 1e6)
    """Seconds of audio, including padding, per micro-batch and process. Replaces batch_size (0 = use batch_size)."""
    gradient_accumulation_steps: int = limited(8, 1, 2**16)
    """Micro-batches per update."""
    learning_rate: float = limited(2e-5, 0, 1e100, above=True)
    """Initial learning rate of AdamW, for both networks."""
    discriminator_learning_rate: float | None = limited(None, 0, 1e100, above=True)
    """Initial learning rate of the discriminators, if another one (null = learning_rate)."""
    learning_rate_decay: float = 0.999875
    """Factor on the learning rate after each epoch (VITS: 0.999 ** (1/8)), for the exponential schedule."""
    schedule: Schedule = "exponential"
    """Learning rate schedule. exponential: multiply by learning_rate_decay after each epoch. cosine: decay to 0 at the
    end of the run along half a cosine. constant: no decay."""
    warmup_updates: int = limited(0, 0)
    """Updates of linear learning rate warm-up, for both networks (0 = none)."""
    freeze: str = ""
    """Parts of the generator to freeze, separated by commas: text_encoder, posterior_encoder, flow, decoder,
    duration_predictor; or of the last one only what synthesis uses, duration_synthesis."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the generator's weights, such as 0.999. Validation and the exported
    voice use the average; training continues with the raw weights (0 = no average)."""
    epochs: int = limited(10, 1)
    """Passes over the training clips."""
    max_updates: int = limited(0, 0)
    """Number of updates to train; overrides epochs (0 = use epochs)."""
    target_hours: float = limited(0.0, 0, 1e6)
    """Approximate training time, in hours. Chooses epochs from the speed measured at the start (0 = use epochs)."""
    split: str = "train"
    """dataset, Hub: the split to read, or several such as train+validated."""
    config_name: str | None = None
    """dataset, Hub: the configuration, such as a language (null = its only or default one)."""
    revision: str | None = None
    """dataset, Hub: the branch, tag or commit to read (null = the main branch)."""
    text_column: str | None = None
    """dataset: column of the texts (null = sentence, else text, transcription ...)."""
    audio_column: str | None = None
    """dataset: column of the recordings (null = audio, else path, else the only one of this type)."""
    speaker_column: str | None = None
    """dataset: column of the speakers (null = client_id, else speaker_id, else speaker ..., if present)."""
    max_duration_s: float = limited(60.0, 0.2, 300)
    """dataset: reject recordings longer than this, in seconds. The dry run allocates a batch of this length."""
    max_samples: int = limited(0, 0)
    """Use only this many clips of the folder (0 = all)."""
    only_speakers: str = ""
    """Use only clips of these speakers, separated by commas (empty = all)."""
    max_clips_per_speaker: int = limited(0, 0)
    """Use at most this many clips per speaker, drawn by the seed (0 = all)."""
    extend_speakers: bool = False
    """Add speakers of the data that the voice lacks, when fine-tuning. The voice sounds the same until the first
    update. Without this flag, a one-speaker voice learns all speakers as one, and a multi-speaker voice rejects new
    ones."""
    streaming: bool = False
    """Stream shards (prepare_data --shards) without a local copy. data_dir may be a folder, a pattern of shards, a URL
    such as s3://bucket/folder, or a dataset of shards on the Hub (owner/name)."""
    streaming_window: int = limited(8, 1, 2**16)
    """Streaming: number of micro-batches whose clips are sorted by length together. A larger window wastes less on
    padding and needs more memory."""
    speaker_temperature: float = 1.0
    """Balance of speakers in an epoch: a speaker with n clips gets a share proportional to n ** temperature. 1 = each
    clip once; 0.5 = more draws for speakers with few clips; 0 = equal shares."""

    objective: ObjectiveKind = "vits"
    """vits: the full VITS objective. mel: only the mel and duration losses, without discriminators, for small GPUs and
    quick runs."""
    loss_weights: LossWeights = LossWeights()
    """Weight of each loss in the generator's total."""
    kl_warmup_updates: int = limited(0, 0)
    """Updates within which the weight of the KL divergence rises linearly from 0 (0 = full weight at once)."""
    alignment_noise: float = limited(0.0, 0, 1)
    """From scratch: noise on the scores of the alignment search, relative to their standard deviation. It falls by 2e-6
    per update (0 = none; VITS 2: 0.01)."""
    segment_frames: int = limited(32, 1, 1024)
    """Length of the decoded training segments, in spectrogram frames."""
    max_grad_norm: float = limited(0.0, 0, 1e12)
    """Maximum gradient norm of each network (0 = no clipping, as in VITS; the norm is logged either way)."""
    adam_betas: tuple[float, float] = limited((0.8, 0.99), 0, 1, below=True)
    """AdamW's betas."""
    discriminator_betas: tuple[float, float] | None = limited(None, 0, 1, below=True)
    """AdamW's betas for the discriminators, if others (null = adam_betas)."""
    adam_eps: float = limited(1e-9, 0, 1, above=True)
    """AdamW's epsilon."""
    weight_decay: float = limited(0.01, 0, 1e6)
    """AdamW's weight decay."""
    layerdrop: float = 0.0
    """Probability of skipping a layer of the text encoder. Requires a single process. VITS uses none; the transformers
    configurations contain 0.1."""

    language: str | None = None
    """Language of the texts, such as de or deu, for phonemes and for writing out numbers (null = that of the voice)."""
    extend_vocabulary: bool = False
    """Add embeddings for letters and digits of the texts that the vocabulary lacks. Existing embeddings are kept."""
    phonemes: bool = False
    """From scratch: use espeak-ng's phonemes instead of letters. Requires language."""

    architecture: Architecture | None = None
    """Generator to train from scratch. Requires model_name null."""
    decoder: DecoderShape | None = None
    """Decoder of another size, initialized randomly, that replaces that of model_name (--config swap_decoder)."""
    discriminator: DiscriminatorShape = DiscriminatorShape()  # noqa: RUF009 - it is frozen
    """Size of the discriminators, if they are initialized randomly."""
    discriminator_from: str | None = None
    """Discriminators to start from: a D_*.pth of original VITS or MMS, a discriminator.safetensors, or a voice that
    contains them (null = those inside or next to model_name, else random weights)."""
    discriminator_encoder: str | None = None
    """Adds a discriminator on the hidden states of this frozen speech encoder of transformers (WavLM, HuBERT, wav2vec
    2.0 ...): a folder, or a Hub name such as microsoft/wavlm-base-plus. Its cost: docs/quality.md."""
    discriminator_encoder_layers: tuple[int, ...] = limited((), 0, 1000)
    """Hidden states of discriminator_encoder that are used: 0 is the input of its first layer (empty = all)."""
    discriminator_warmup_updates: int | None = limited(None, 0)
    """Updates that train only the discriminators (null = 200, but at most a tenth of the run, if a trained voice starts
    with randomly initialized discriminators; else 0)."""

    precision: Precision = "auto"
    """fp32; tf32: TF32 convolutions and matrix products, on NVIDIA GPUs since Ampere; bf16; fp16; or auto: bf16 on GPUs
    that have it, else fp32. --fp16 is short for --precision fp16."""
    seed: int = limited(1234, 0, MAX_SEED)
    """Random seed of the clip order, segments, noise, dropout and initial weights."""
    deterministic: bool = False
    """Use deterministic GPU kernels, which are slower: a resumed run then ends with exactly the weights of an
    uninterrupted one. On a CPU this always holds."""
    compile: bool = False
    """Compile the networks. The first updates take minutes, later ones are faster."""
    cuda_graphs: bool = False
    """On one GPU, record the updates of each batch shape as a CUDA graph, which is launched at once. Experimental."""
    gradient_checkpointing: bool = False
    """Recompute the generator's activations in the backward pass: less memory, slower."""
    data_workers: int = limited(2, 0, 1024)
    """Data loading processes per training process (0 = load in the training process)."""

    max_rejected_fraction: float = 0.01
    """End the run if more than this fraction of the clips cannot be used."""
    max_nonfinite_updates: int = limited(3, 0)
    """End the run after more than this many consecutive updates with NaN or Inf losses or gradients. Such updates do
    not change the weights."""
    rank_timeout_s: float = limited(600.0, 1, 1e7)
    """Timeout of collective operations, in seconds. After it the run ends and names the missing ranks. Must exceed the
    time that saving a checkpoint and generating samples take."""

    validation_fraction: float = 0.05
    """Fraction of the clips used for validation (at least one clip, at most validation_max_clips; 0 = none)."""
    validation_max_clips: int = limited(64, 0)
    """Maximum number of validation clips."""
    validate_on_training_clips: bool = False
    """Validate on clips that are also trained on, starting before the first update (for a handful of corrections)."""
    validation_samples: int = limited(2, 0, 1024)
    """Number of validation sentences to synthesize and plot at each validation (0 = none)."""
    validate_every_updates: int = limited(500, 0)
    """Updates between validations. The end of the run is always validated (0 = only the end)."""
    validation_scores: str = ""
    """Speech scores to compute at each validation, separated by commas, of {scores}: validation sentences are
    synthesized and compared with their recordings (see evaluate)."""
    validation_score_clips: int = limited(16, 0)
    """Number of validation sentences to synthesize for these scores."""
    asr: str = AUTO
    """Speech recognizer for cer. auto, for English: whisper-tiny.en where the extra asr is installed, else
    pocketsphinx. Or whisper-SIZE, or a model of transformers or faster-whisper (folder or Hub name)."""
    best_metric: str = AUTO
    """Validation metric that selects the best checkpoint: a loss ({losses}), or a metric of a
    score ({metrics}). auto: cer for English voices where the extra asr is
    installed, and with another asr; else mel."""
    patience: int = limited(0, 0)
    """Stop after this many consecutive validations without improvement of best_metric, and export the best checkpoint
    (0 = train to the end and export the last update)."""
    log_every_updates: int = limited(10, 1)
    """Updates between log lines."""
    save_every_updates: int = limited(500, 0)
    """Updates between checkpoints. A checkpoint is always saved at the end (0 = only there)."""
    save_before_s: float = limited(0.0, 0, 1e9)
    """Save and stop before the process has run for this many seconds, for jobs with a time limit (0 = no limit)."""
    keep_checkpoints: int = limited(3, 0)
    """Number of newest checkpoints to keep, in addition to the best one (0 = all)."""
    resume_from_checkpoint: str | None = None
    """Checkpoint to resume from: latest, auto (latest, or a new run if there is none), best, or a checkpoint's path."""

    report_to: str = "wandb"
    """Trackers to log to in addition to metrics.jsonl, separated by commas: {trackers}; or none."""
    wandb_checkpoints: bool = False
    """Also upload each checkpoint to Weights & Biases as an artifact (aliases latest and best)."""
    wandb_project: str = "vits_trainer"
    """Weights & Biases project. Without an API key the run is logged offline, to be synced later."""
    wandb_entity: str | None = None
    """Weights & Biases team or user (null = your default)."""
    wandb_tags: tuple[str, ...] = ()
    """Weights & Biases tags, such as [a, b]."""
    push_to_hub: str | None = None
    """Upload the voice with its model card to this model (owner/name) on the Hugging Face Hub at the end. Authenticate
    with hf auth login or HF_TOKEN."""
    hub_private: bool = True
    """Create the model of --push_to_hub as private."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require_run_name(self.run_name)
        require(self.push_to_hub != "", "--push_to_hub: give the name on the Hub, as owner/name.")
        require(
            not (self.target_hours and self.max_updates),
            f"--target_hours {self.target_hours:g} and --max_updates {self.max_updates} exclude each other: give only "
            "one.",
        )
        self._check_streaming()
        self._check_speakers()
        self._check_text()
        self._check_optimization()
        require(
            0 <= self.validation_fraction < 1,
            f"--validation_fraction {self.validation_fraction}: must be at least 0 and below 1.",
        )
        require(
            0 <= self.max_rejected_fraction <= 1,
            f"--max_rejected_fraction {self.max_rejected_fraction}: must be between 0 and 1.",
        )
        require(0 <= self.layerdrop < 1, f"--layerdrop {self.layerdrop}: must be at least 0 and below 1.")
        require(
            not (self.layerdrop and self.gradient_checkpointing),
            f"--layerdrop {self.layerdrop} and --gradient_checkpointing exclude each other: the recomputed layers "
            "would be others than those of the forward pass. Leave out one of them.",
        )
        require(
            not self.alignment_noise or self.architecture is not None,
            f"--alignment_noise {self.alignment_noise:g} requires training from scratch: a trained voice is aligned.",
        )
        off = {
            "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "layerdrop": 0.0, "kl_warmup_updates": 0,
            "alignment_noise": 0.0,
        }  # fmt: skip
        for name, value in off.items() if self.cuda_graphs else ():
            require(
                getattr(self, name) == value,
                f"--cuda_graphs and --{name} {getattr(self, name)} exclude each other. Set --{name} {value}, or omit "
                "--cuda_graphs.",
            )
        self._check_discriminators()
        self._check_selection()
        self._check_start()

    def _check_start(self) -> None:
        require(
            self.decoder is None or "decoder" not in self.frozen_parts,
            f"--decoder and --freeze {self.freeze} exclude each other: the new decoder must be trained.",
        )
        require(
            self.decoder is None or self.architecture is None,
            "--decoder and an architecture exclude each other: the decoder replaces that of a trained voice. Give its "
            "sizes as --architecture.",
        )
        if self.architecture is None:
            require(
                bool(self.model_name),
                "--model_name is empty: give the voice to start from, or train from scratch (such as --config tiny).",
            )
        else:
            require(
                self.model_name is None,
                f"--model_name {self.model_name} and an architecture to train from scratch exclude each other: leave "
                "out the architecture (or the recipe that contains it), or set --model_name null.",
            )
            self.architecture.check()

    def _check_optimization(self) -> None:
        require(
            0 < self.learning_rate_decay <= 1,
            f"--learning_rate_decay {self.learning_rate_decay}: must be above 0 and at most 1.",
        )
        require(
            0 <= self.ema_decay < 1,
            f"--ema_decay {self.ema_decay}: must be at least 0 (no average) and below 1, such as 0.999.",
        )
        require(
            self.learning_rate_decay == TrainConfig.learning_rate_decay or self.schedule == "exponential",
            f"--learning_rate_decay {self.learning_rate_decay} requires the exponential schedule: leave out this flag "
            f"or --schedule {self.schedule}.",
        )
        split_names("freeze", self.freeze, PARTS)

    def _check_text(self) -> None:
        require(
            not self.phonemes or (self.architecture is not None and bool(self.language)),
            "--phonemes requires training from scratch (--config from_scratch) and a --language, such as de.",
        )
        require(
            not self.extend_vocabulary or "text_encoder" not in self.frozen_parts,
            f"--extend_vocabulary and --freeze {self.freeze} exclude each other: embeddings of new letters are "
            "trained in the text encoder. Leave out one of them.",
        )

    def check_unprepared_settings(self) -> None:
        """Raises :class:`ConfigError` for a setting of a data set as it lies, if there is none."""
        for name in _UNPREPARED:
            require(
                getattr(self, name) == getattr(TrainConfig, name),
                f"--{name} applies to --dataset only. Leave it out, or give it to prepare_data.",
            )

    def _check_streaming(self) -> None:
        require(
            self.dataset is None or self.streaming,
            f"--dataset {self.dataset} requires --streaming true. To train without streaming, prepare it: vits-trainer "
            f"prepare_data --dataset {self.dataset}",
        )
        for name in ("dataset", *_UNPREPARED):
            require(getattr(self, name) != "", f"--{name} is empty: give a name, or leave the flag out.")
        for name, off in _NOT_STREAMED.items():
            require(
                not self.streaming or getattr(self, name) == off,
                f"--streaming and --{name} exclude each other: --{name} requires the list of all clips. Leave it out, "
                "or train on the shards without --streaming.",
            )

    def _check_speakers(self) -> None:
        require(
            0 <= self.speaker_temperature <= 1,
            f"--speaker_temperature {self.speaker_temperature}: must be between 0 (equal shares of all speakers) and 1 "
            "(each clip once per epoch).",
        )
        require(
            self.speaker_temperature == 1 or not self.batch_seconds,
            f"--speaker_temperature {self.speaker_temperature} with --batch_seconds {self.batch_seconds}: the number "
            "of updates would differ between epochs. Use --batch_size instead of --batch_seconds.",
        )
        require(
            not self.extend_speakers or self.architecture is None,
            "--extend_speakers: a voice trained from scratch has all speakers of its data anyway. Leave it out, or "
            "give the voice to extend as --model_name (without an architecture).",
        )

    def _check_discriminators(self) -> None:
        for setting in ("discriminator_from", "discriminator_encoder", "discriminator_warmup_updates"):
            value = getattr(self, setting)
            require(
                not value or self.objective == "vits",
                f"--{setting} {value}: --objective {self.objective} has no discriminators. Leave out one of these "
                "flags.",
            )
        layers = self.discriminator_encoder_layers
        require(
            not layers or self.discriminator_encoder is not None,
            f"--discriminator_encoder_layers {list(layers)}: needs --discriminator_encoder, the encoder that has them.",
        )
        require(
            len(set(layers)) == len(layers),
            f"--discriminator_encoder_layers {list(layers)}: contains a layer twice.",
        )

    def _check_selection(self) -> None:
        score_metrics = [metric for metrics in SCORES.values() for metric in metrics]
        known = (AUTO, *VALIDATION_LOSSES, *score_metrics)
        require(self.best_metric in known, f"--best_metric {self.best_metric}: must be one of {', '.join(known)}.")
        require(
            self.best_metric != "multi_scale_mel" or self.loss_weights.multi_scale_mel > 0,
            "--best_metric multi_scale_mel requires --loss_weights.multi_scale_mel above 0.",
        )
        computed = (AUTO, "mel", "multi_scale_mel", "total", "duration", *score_metrics)
        require(
            self.objective == "vits" or self.best_metric in computed,
            f"--best_metric {self.best_metric}: --objective mel does not compute it. Use mel, total, duration or the "
            "metric of a score.",
        )
        require(
            not self.patience or self.validate_every_updates > 0,
            f"--patience {self.patience} requires --validate_every_updates above 0.",
        )
        require(
            not self.patience or self.validation_fraction > 0 or self.validate_on_training_clips,
            f"--patience {self.patience} requires validation clips: set --validation_fraction above 0.",
        )
        require(
            not self.scores or self.validation_score_clips > 0,
            "--validation_score_clips 0: must be at least 1 to compute scores.",
        )
        require(
            bool(self.trackers) or self.report_to == "none", "--report_to is empty: give at least one tracker, or none."
        )

    @property
    def scores(self) -> tuple[str, ...]:
        """Speech scores of the validation: ``validation_scores``, and the one that ``best_metric`` needs."""
        requested = split_names("validation_scores", self.validation_scores, SCORES)
        needed = [score for score, metrics in SCORES.items() if self.best_metric in metrics and score not in requested]
        return (*requested, *needed)

    @property
    def discriminator_learning_rate_factor(self) -> float:
        """Learning rate of the discriminators, relative to that of the generator."""
        return (self.discriminator_learning_rate or self.learning_rate) / self.learning_rate

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Frozen parts of the generator, in the order of :data:`PARTS`."""
        requested = split_names("freeze", self.freeze, PARTS)
        return tuple(part for part in PARTS if part in requested)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Trackers to log to, in addition to the files of the run."""
        return () if self.report_to == "none" else split_names("report_to", self.report_to, TRACKERS)
