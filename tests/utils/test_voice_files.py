"""Finding the files of a voice."""

from pathlib import Path

import pytest

from vits_trainer.utils.voice_files import find_voice_file


def test_file_of_a_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vocab.json").mkdir()
    assert find_voice_file(str(tmp_path), "config.json") == tmp_path / "config.json"
    assert find_voice_file(str(tmp_path), "vocab.json") is None
    assert find_voice_file(str(tmp_path), "absent.json") is None


def test_name_that_is_neither_folder_nor_on_the_hub_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        find_voice_file(str(tmp_path / "absent"), "config.json")
