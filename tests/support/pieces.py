"""Functions that worker processes call with a piece of prepared data; importing this loads no torch."""

import sys

from vits_trainer.data.quality.pieces import Piece
from vits_trainer.evaluation.clip_scores import ScoreSettings, score_piece


def heavy_packages(piece: Piece) -> set[str]:
    """Returns the heavy packages that the worker has loaded after it measured the piece."""
    score_piece(piece, ScoreSettings(16000))
    return {"torch", "transformers", "datasets"} & set(sys.modules)
