"""Pictures of alignments have one shape and name characters only."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from tests.support.models import TOKENIZER
from vits_trainer.tracking.plots import alignment_picture
from vits_trainer.training.validation import _characters


@pytest.mark.parametrize("characters", [0, 1, 30, 400])
def test_alignment_has_the_same_shape_for_every_text(
    characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[list[str]] = []
    set_yticks = Axes.set_yticks
    monkeypatch.setattr(Axes, "set_yticks", lambda *args, **more: (labels.append(args[2]), set_yticks(*args, **more)))
    tokens = ["", *(token for n in range(characters) for token in (chr(97 + n % 26), ""))]
    alignment_picture(np.arange(len(tokens)), tokens, tmp_path / "alignment.png")
    assert Image.open(tmp_path / "alignment.png").size == (900, 500)
    (named,) = labels
    assert min(characters, 1) <= len(named) <= 45
    assert "" not in named


def test_blanks_are_not_characters_even_if_their_token_is_a_letter() -> None:
    ids = TOKENIZER("silav").input_ids
    assert len(ids) == 11  # with blanks
    assert _characters(TOKENIZER, ids) == ["", "s", "", "i", "", "l", "", "a", "", "v", ""]
