"""A page to listen to suspicious clips, and to mark those that prepare_data --drop leaves out.

The page is one file without network access. It saves the list as a download.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import soundfile as sf
from numpy.typing import NDArray

_MAX_SHOWN_S = 60.0
"""Longer clips are cut on the page."""


@dataclass(frozen=True)
class ShownClip:
    """A suspicious clip on the page."""

    name: str
    source: str
    """Its name in the source; empty if it is not known."""
    speaker: str
    text: str
    transcript: str
    """What a recognizer heard; empty if there was none."""
    reasons: Sequence[str]
    signals: Sequence[str]
    pcm: NDArray[np.int16] | None
    """(T,); None if it cannot be read."""


def render_check_page(
    title: str, clips: Sequence[ShownClip], counts: Mapping[str, int], total: int, suspicious: int, rate_hz: int
) -> str:
    """Renders the page.

    Args:
        title: names the data.
        clips: the worst ones.
        counts: number of suspicious clips by signal.
        total: number of clips of the data.
        suspicious: number of suspicious ones.
        rate_hz: sampling rate of the clips.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script = (folder / "check_data.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    listed = [{"clip": clip.name, "source": clip.source, "signals": "; ".join(clip.signals)} for clip in clips]
    page_id = hashlib.sha256(json.dumps([title, listed]).encode()).hexdigest()[:16]
    return environment.get_template("check_data.html.j2").render(
        title=title,
        clips=[(clip, _flac_uri(clip.pcm, rate_hz)) for clip in clips],
        counts=counts,
        total=total,
        suspicious=suspicious,
        script=script,
        digest=digest,
        content={"page": page_id, "clips": listed},
    )


def _flac_uri(pcm: NDArray[np.int16] | None, rate_hz: int) -> str:
    if pcm is None or not len(pcm):
        return ""
    content = io.BytesIO()
    sf.write(content, pcm[: int(_MAX_SHOWN_S * rate_hz)], rate_hz, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(content.getvalue()).decode()}"
