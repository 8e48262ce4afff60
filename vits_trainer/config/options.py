"""Choices shared by several configurations. Imports no torch."""

from typing import Literal

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
ObjectiveKind = Literal["vits", "mel"]
Schedule = Literal["exponential", "cosine", "constant"]

MODULES = ("text_encoder", "posterior_encoder", "flow", "decoder", "duration_predictor")
"""Parts of a generator, named as in transformers. Multi-speaker voices also have an embedding."""
PARTS = (*MODULES, "duration_synthesis")
"""What can be frozen; the last one is what synthesis uses of the duration predictor."""

SCORES = {
    "mcd": ("mcd_db",),
    "f0": ("log_f0_rmse", "voicing_error"),
    "duration": ("duration_error",),
    "cer": ("cer", "wer"),
    "dnsmos": ("dnsmos", "dnsmos_signal", "dnsmos_background"),
    "utmos": ("utmos",),
    "similarity": ("speaker_similarity",),
}
"""Speech scores, and the metrics that each computes."""
HIGHER_IS_BETTER = frozenset({*SCORES["dnsmos"], "utmos", "speaker_similarity"})
"""Metrics where higher is better. For all other metrics and for losses, lower is better."""
UNRELIABLE_CER = 0.5
"""Above this error rate, a recognizer understands too little for differences to mean anything."""
AUTO = "auto"
POCKETSPHINX = "pocketsphinx"
WHISPER = "whisper-tiny.en"
"""Recognizer of the extra ``asr``, whose packages contain the weights."""
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""All that Accelerate knows."""

SPEECH_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG"}
"""File extensions that synthesize writes, and libsndfile's names of the formats."""
TIMING_FORMATS = (".json", ".srt")
"""File extensions of the times of words and tokens."""
