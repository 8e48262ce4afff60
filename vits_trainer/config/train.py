"""Configuration of train_vits.

Imports no torch, so that invalid flags fail immediately. The docstring under a field is its ``--help``. Whatever can be
wrong with a value by itself is refused in ``__post_init__``; what depends on the machine or the data is decided later,
in ``distributed.runtime`` and ``training.plan``, and never written back here.
"""

from dataclasses import dataclass

from vits_trainer.config.architecture import Architecture, DiscriminatorShape
from vits_trainer.config.options import PARTS, SCORES, TRACKERS, VALIDATION_LOSSES, ObjectiveKind, Precision, Schedule
from vits_trainer.config.serialization import listed
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
"""Settings that need to know every clip beforehand, and what they are without."""


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
class TrainConfig:
    """Train or fine-tune a voice on a prepared folder; the result loads in ``transformers`` as it is."""

    data_dir: str = "training"
    """The folder that prepare_data wrote."""
    checkpoint_dir: str = "training/checkpoints"
    """Where checkpoint-<update>/ folders go."""
    output_dir: str = "training/final_model"
    """Where the trained voice goes; transformers' VitsModel and pipeline load it as it is. A voice that is there
    becomes a version, in <output_dir>_versions; anything else there is refused before the training starts."""
    keep_versions: int = 5
    """How many of the voices that stood in output_dir before are kept (0 = all)."""
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
    """Factor on the learning rate at each epoch's end (VITS: 0.999 ** (1/8)); for the exponential schedule."""
    schedule: Schedule = "exponential"
    """How the learning rate falls. exponential: by learning_rate_decay, once an epoch. cosine: along half a cosine, to
    0 at the run's end. constant: not at all."""
    warmup_updates: int = 0
    """Updates in which the learning rate of both networks rises to its full height, on a straight line (0 = none)."""
    freeze: str = ""
    """Parts of the generator to leave as they are, separated by commas: text_encoder, posterior_encoder, flow, decoder,
    duration_predictor."""
    ema_decay: float = 0.0
    """Keep a moving average of the generator's weights, as 0.999: it is validated, and becomes the voice; training goes
    on with the raw weights (0 = none)."""
    epochs: int = 10
    """Passes over the training clips."""
    max_updates: int = 0
    """Train for this many updates, whatever the epochs say (0 = by epochs)."""
    target_hours: float = 0.0
    """Train for about this many hours: chooses the epochs from the speed measured at the start (0 = by epochs)."""
    max_samples: int = 0
    """Use only this many clips of the folder (0 = all)."""
    only_speakers: str = ""
    """Use only the clips of these speakers of the folder, separated by commas (empty = all)."""
    max_clips_per_speaker: int = 0
    """Use at most this many clips of each speaker, drawn by the seed (0 = all)."""
    extend_speakers: bool = False
    """Fine-tuning: speakers of the data that the voice does not know are added to it, and it sounds as before until the
    first update. Without it, a one-speaker voice learns all speakers as one; a voice of several refuses new ones."""
    streaming: bool = False
    """Read shards (prepare_data --shards) where they lie, nothing kept on this disk: data_dir is then a folder, a
    pattern of shards, an address as s3://bucket/folder, or a data set of shards on the Hub (owner/name)."""
    streaming_window: int = 8
    """Streaming: so many micro-batches are sorted by length together. More of them waste less on padding, and take more
    memory."""
    speaker_temperature: float = 1.0
    """How speakers share an epoch: one of n clips gets a share like n ** temperature. 1 = every clip once; 0.5 = the
    speakers of few clips more often; 0 = all speakers alike."""

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

    language: str | None = None
    """Language of the texts, as de or deu: for phonemes, and for numbers in words (null = as the voice says)."""
    extend_vocabulary: bool = False
    """Give the voice an embedding for each letter and digit of the texts that its vocabulary lacks; old ones stay."""
    phonemes: bool = False
    """From scratch: read espeak-ng's phonemes instead of letters; needs a language."""

    architecture: Architecture | None = None
    """The generator to train from scratch; needs model_name null."""
    discriminator: DiscriminatorShape = DiscriminatorShape()  # noqa: RUF009 - it is frozen
    """Size of the discriminators, where they start fresh."""
    discriminator_from: str | None = None
    """Discriminators to start with: a D_*.pth of original VITS or MMS, a discriminator.safetensors, or a voice that has
    them (null = those beside model_name or inside its file, else fresh ones)."""
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
    validation_scores: str = ""
    """What else to judge the voice by at each validation, as mcd,f0,duration,cer: held-out sentences are spoken and
    compared with their recordings (see evaluate; also utmos, similarity)."""
    validation_score_clips: int = 16
    """How many held-out sentences are spoken for these scores."""
    asr: str = "pocketsphinx"
    """What listens for cer: pocketsphinx (English, offline), or a speech recognition model of transformers."""
    best_metric: str = "mel"
    """What the best checkpoint is chosen by, on the held-out clips: mel, mel_from_text or another loss, or a score's
    figure: mcd_db, log_f0_rmse, voicing_error, duration_error, cer, wer, utmos, speaker_similarity."""
    patience: int = 0
    """Stop after so many validations in a row without a better best_metric; the best checkpoint is the voice then
    (0 = train to the end; the last update is the voice)."""
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

    report_to: str = "wandb"
    """Where metrics go beside metrics.jsonl, separated by commas: wandb, tensorboard, trackio; or none."""
    wandb_checkpoints: bool = False
    """Send each checkpoint to Weights & Biases as an artifact too (latest, best)."""
    wandb_project: str = "vits_trainer"
    """Weights & Biases project. Without an API key the run is kept offline, to be synced later."""
    wandb_entity: str | None = None
    """Weights & Biases team or user (null = your default)."""
    wandb_tags: tuple[str, ...] = ()
    """Weights & Biases tags, as [a, b]."""
    push_to_hub: str | None = None
    """Send the voice, with its model card, to the Hugging Face Hub at the end, as owner/name. Who is logged in (hf auth
    login), or HF_TOKEN, does it."""
    hub_private: bool = True
    """Whether a model that --push_to_hub makes is private."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation_steps", "epochs", "log_every_updates", "segment_frames"):
            require(getattr(self, name) >= 1, f"--{name} {getattr(self, name)}: give 1 or more.")
        for name in (
            "max_updates",
            "max_samples",
            "max_clips_per_speaker",
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
            "validation_score_clips",
            "patience",
            "warmup_updates",
            "keep_versions",
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
        self._check_streaming()
        self._check_speakers()
        self._check_text()
        self._check_learning()
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
        self._check_selection()
        self._check_start()

    def _check_start(self) -> None:
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
            self.architecture.check()

    def _check_learning(self) -> None:
        require(self.learning_rate > 0, f"--learning_rate {self.learning_rate}: give a number above 0, such as 2e-5.")
        require(
            0 < self.learning_rate_decay <= 1,
            f"--learning_rate_decay {self.learning_rate_decay}: give a number above 0 and at most 1.",
        )
        require(
            0 <= self.ema_decay < 1,
            f"--ema_decay {self.ema_decay}: give a number from 0 (no average) to below 1, such as 0.999.",
        )
        require(
            self.learning_rate_decay == TrainConfig.learning_rate_decay or self.schedule == "exponential",
            f"--learning_rate_decay {self.learning_rate_decay} belongs to the exponential schedule: leave it out, or "
            f"leave out --schedule {self.schedule}.",
        )
        listed("freeze", self.freeze, PARTS)

    def _check_text(self) -> None:
        require(
            not self.phonemes or (self.architecture is not None and bool(self.language)),
            "--phonemes belongs to a voice from scratch (--config from_scratch), and needs its --language, as de.",
        )
        require(
            not self.extend_vocabulary or "text_encoder" not in self.frozen_parts,
            f"--extend_vocabulary with --freeze {self.freeze}: new letters are learnt in the text encoder. Leave out "
            "one of the two.",
        )

    def _check_streaming(self) -> None:
        require(self.streaming_window >= 1, f"--streaming_window {self.streaming_window}: give 1 or more.")
        for name, off in _NOT_STREAMED.items():
            require(
                not self.streaming or getattr(self, name) == off,
                f"--streaming and --{name} exclude one another, as it needs to know every clip beforehand: leave out "
                f"--{name}, or train on the shards without --streaming.",
            )

    def _check_speakers(self) -> None:
        require(
            0 <= self.speaker_temperature <= 1,
            f"--speaker_temperature {self.speaker_temperature}: give a number from 0 (all speakers alike) to 1 (every "
            "clip once an epoch).",
        )
        require(
            self.speaker_temperature == 1 or not self.batch_seconds,
            f"--speaker_temperature {self.speaker_temperature} with --batch_seconds {self.batch_seconds}: epochs would "
            "have more updates or fewer with the clips that they draw. Give a --batch_size instead of the seconds.",
        )
        require(
            not self.extend_speakers or self.architecture is None,
            "--extend_speakers: a voice from scratch has all speakers of its data anyway. Leave it out, or give "
            "--model_name the voice to extend (and no architecture).",
        )

    def _check_selection(self) -> None:
        require(
            self.discriminator_from is None or self.objective == "vits",
            f"--discriminator_from {self.discriminator_from} with --objective {self.objective}: that one has no "
            "discriminators. Leave one of them out.",
        )
        require(
            not self.discriminator_warmup_updates or self.objective == "vits",
            f"--discriminator_warmup_updates {self.discriminator_warmup_updates} with --objective {self.objective}: "
            "that one has no discriminators. Leave one of them out.",
        )
        figures = [figure for names in SCORES.values() for figure in names]
        require(
            self.best_metric in (*VALIDATION_LOSSES, *figures),
            f"--best_metric {self.best_metric}: give one of {', '.join((*VALIDATION_LOSSES, *figures))}.",
        )
        require(
            self.objective == "vits" or self.best_metric in ("mel", "total", "duration", *figures),
            f"--best_metric {self.best_metric}: --objective mel has no such loss. Give mel, total or a score.",
        )
        require(not self.patience or self.validate_every_updates > 0, "--patience needs --validate_every_updates.")
        require(
            not self.patience or self.validation_fraction > 0 or self.validate_on_training_clips,
            "--patience needs held-out clips: give a --validation_fraction above 0.",
        )
        require(
            not self.scores or self.validation_score_clips > 0, "--validation_score_clips 0: give 1 or more for scores."
        )
        require(bool(self.trackers) or self.report_to == "none", "--report_to is empty: give a tracker, or none.")

    @property
    def scores(self) -> tuple[str, ...]:
        """Of the validation: as asked for, and what gives the best metric."""
        asked = listed("validation_scores", self.validation_scores, SCORES)
        needed = [score for score, figures in SCORES.items() if self.best_metric in figures and score not in asked]
        return (*asked, *needed)

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Of the generator, in the order of :data:`PARTS`."""
        asked = listed("freeze", self.freeze, PARTS)
        return tuple(part for part in PARTS if part in asked)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Where metrics go, beside the run's folder."""
        return () if self.report_to == "none" else listed("report_to", self.report_to, TRACKERS)
