"""Plots as PNG files: mel spectrograms and alignments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

matplotlib.use("Agg")  # needs no display


_MAX_LABELS = 45
"""Characters beside an alignment that can be read at its size."""


@dataclass(frozen=True)
class Sample:
    """One validation sentence, synthesized at some update."""

    text: str
    recorded: NDArray[np.float32]
    """(M,), the recording."""
    speech: NDArray[np.float32]
    """(N,), synthesized from the text alone, as in inference."""
    mels: dict[str, NDArray[np.float32]]
    """(M, T), log-mels of the recording, of its reconstruction from the posterior, and of the speech from text."""
    token_of_frame: NDArray[np.int64]
    """(T,), the alignment of the recording."""
    tokens: list[str]
    """Characters; "" for blanks."""


def mel_picture(
    mels: Mapping[str, NDArray[np.float32]], hop_s: float, path: Path | BinaryIO, width_inches: float = 9
) -> None:
    """Plots log-mel spectrograms, (M, T) each, one below the other with common time and colour scales.

    Args:
        mels: spectrograms by title.
        hop_s: seconds per frame.
        path: PNG file to write.
        width_inches: width of the figure, always 900 pixels: a smaller value makes the text larger.
    """
    figure = _figure(width_inches, 2.2 * len(mels), right_inches=1.1)
    longest_s = max(mel.shape[1] for mel in mels.values()) * hop_s
    norm = Normalize(min(mel.min() for mel in mels.values()), max(mel.max() for mel in mels.values()))
    axes = figure.subplots(len(mels), 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.25})[:, 0]
    for axis, (title, mel) in zip(axes, mels.items(), strict=True):
        extent = (0, mel.shape[1] * hop_s, 0, mel.shape[0])
        axis.imshow(mel, origin="lower", aspect="auto", extent=extent, norm=norm, cmap="magma")
        axis.set(title=title, ylabel="mel band", xlim=(0, longest_s))
    axes[-1].set_xlabel("seconds")
    scale = figure.add_axes((1 - 0.95 / width_inches, axes[-1].get_position().y0, 0.15 / width_inches, 0.7))
    figure.colorbar(ScalarMappable(norm, "magma"), cax=scale, label="natural log of magnitude")
    _save(figure, path, dpi=round(900 / width_inches))


def alignment_picture(token_of_frame: NDArray[np.int64], tokens: Sequence[str], path: Path) -> None:
    """Plots the alignment: the token of each frame, (T,), from bottom to top; of many characters, every n-th named."""
    figure = _figure(9, 5)
    axis = figure.subplots()
    path_image = np.zeros((len(tokens), len(token_of_frame)), dtype=np.float32)
    path_image[token_of_frame, np.arange(len(token_of_frame))] = 1
    axis.imshow(path_image, origin="lower", aspect="auto", cmap="Blues", interpolation="nearest")
    named = [index for index, token in enumerate(tokens) if token.strip()]
    labelled = named[:: -(-len(named) // _MAX_LABELS) or 1]
    axis.set_yticks(labelled, [tokens[index] for index in labelled], fontsize=8)
    axis.set(xlabel="frame", ylabel="character", title="alignment")
    _save(figure, path)


def _figure(width_inches: float, height_inches: float, right_inches: float = 0.2) -> Figure:
    """Returns a figure with fixed margins: matplotlib's own layouts draw it twice."""
    figure = Figure(figsize=(width_inches, height_inches))
    left, top, bottom = 0.7 / width_inches, 1 - 0.35 / height_inches, 0.5 / height_inches
    figure.subplots_adjust(left=left, right=1 - right_inches / width_inches, top=top, bottom=bottom)
    return figure


def _save(figure: Figure, path: Path | BinaryIO, dpi: int = 100) -> None:
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, format="png", pil_kwargs={"compress_level": 3})
