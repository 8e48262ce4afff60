"""Trains and fine-tunes VITS and MMS-TTS voices with Hugging Face Accelerate."""

import os

from vits_trainer.utils.cpu_threads import configure_openmp

__version__ = "0.1.0"

# Before torch is imported, which loads OpenMP; data workers and other child processes inherit it.
configure_openmp(os.environ)
