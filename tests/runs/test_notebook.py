"""The notebook of docs/, run as it stands but for the number of updates."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vits_trainer.data.audio import read_pcm16_wav

NOTEBOOK = Path(__file__).parents[2] / "docs/fine_tune_a_voice.ipynb"
UPDATES = "max_updates=160"


def test_notebook_trains_a_voice_that_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("phonemizer", reason="the extra 'text' is not installed")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    source = "\n\n".join("".join(cell["source"]) for cell in cells)
    assert source.count(UPDATES) == 1
    shown: list[object] = []
    screen = ModuleType("IPython.display")  # Jupyter's own, which shows what it is given
    screen.Audio = lambda samples, rate: (len(samples), rate)
    screen.Image = lambda filename: Path(filename).stat().st_size
    screen.display = lambda *things: shown.extend(things)
    monkeypatch.setitem(sys.modules, "IPython.display", screen)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(source.replace(UPDATES, "max_updates=1"), str(NOTEBOOK), "exec"), names)  # noqa: S102 - our own
    printed = capsys.readouterr().out
    assert re.search(r"20 clips, 0\.0[345] hours, rejected: {}", printed)
    assert "done my_voice/final_model" in printed
    before, after, alignment, mel = shown
    assert before[1] == after[1] == 16000
    assert min(before[0], after[0]) > 16000
    assert min(alignment, mel) > 1000
    assert read_pcm16_wav(Path("after.wav"))[1] == 16000
