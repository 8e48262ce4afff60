"""Speech data inside this package."""

from pathlib import Path

_VOICES = Path(__file__).parents[1] / "voices"
BASE_VOICE = _VOICES / "base_en"
"""An English voice for 16 kHz, trained by experiments/base_voice.yaml. A source tree may lack it."""
HUMAN_CLIPS = _VOICES / "lj_20"
"""20 clips of LJ Speech, as an LJ Speech folder of Ogg Opus files."""
