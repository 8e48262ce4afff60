"""Trains and fine-tunes VITS and MMS-TTS voices with Hugging Face Accelerate."""

__version__ = "0.1.0"
