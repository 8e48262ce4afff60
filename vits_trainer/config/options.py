"""Choices that several configurations offer. Imports no torch."""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]
ObjectiveKind = Literal["vits", "mel"]
Schedule = Literal["exponential", "cosine", "constant"]

PARTS = ("text_encoder", "posterior_encoder", "flow", "decoder", "duration_predictor")
"""Of a generator, by transformers' names: what can be frozen. Voices of several speakers have an embedding besides."""

SCORES = {
    "mcd": ("mcd_db",),
    "f0": ("log_f0_rmse", "voicing_error"),
    "duration": ("duration_error",),
    "cer": ("cer", "wer"),
    "utmos": ("utmos",),
    "similarity": ("speaker_similarity",),
}
"""What speech can be judged by, and the figures that each gives."""
HIGHER_IS_BETTER = frozenset({"utmos", "speaker_similarity"})
"""Figures; of all others, and of losses, less is better."""
VALIDATION_LOSSES = ("mel", "mel_from_text", "total", "kl", "duration", "adversarial", "feature_matching")
"""Under ``validation/``."""
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""All that Accelerate knows."""

SPEECH_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG"}
"""Endings of the files that synthesize writes, and libsndfile's names for them."""
