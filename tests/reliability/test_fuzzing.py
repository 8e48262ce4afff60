"""Fuzzing of metadata, configurations and manifests: any content gives a result or a VitsTrainerError.

FUZZ_EXAMPLES=10000 pytest tests/reliability/test_fuzzing.py runs more examples.
"""

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.audio import encode, voice
from tests.support.voices import prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.config import parser
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.sources.detect import open_source
from vits_trainer.training.checkpoint_record import verify_checkpoint
from vits_trainer.utils.errors import CheckpointError, ConfigError, VitsTrainerError
from vits_trainer.utils.files import MARKER
from vits_trainer.utils.strings import one_line

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
FUZZ = settings(max_examples=EXAMPLES)
SLOW_FUZZ = settings(FUZZ, max_examples=EXAMPLES // 3)

WORDS = st.text(st.characters(codec="utf-8"), max_size=20)
LINES = st.lists(st.one_of(WORDS, st.builds("|".join, st.lists(WORDS, min_size=1, max_size=4))), max_size=6)
CONTENTS = st.one_of(st.binary(max_size=200), LINES.map(lambda lines: "\n".join(lines).encode()))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "wavs").mkdir()
    (folder / "wavs/a.wav").write_bytes(encode(voice(0.5, 16000), 16000))
    return folder


def require_path(error: VitsTrainerError, path: Path) -> None:
    assert str(path) in str(error), "the message does not name the path"


@FUZZ
@given(content=CONTENTS)
def test_metadata_of_a_data_set(source: Path, content: bytes) -> None:
    (source / "metadata.csv").write_bytes(content)
    try:
        opened = open_source(PrepareConfig(dataset=str(source)))
        clips = list(opened.clips)
    except VitsTrainerError as error:
        require_path(error, source)
        return
    assert len(clips) == opened.clip_count
    for clip in clips:
        assert isinstance(clip.audio, bytes) or clip.audio.resolve().is_relative_to(source.resolve())


@FUZZ
@given(content=CONTENTS)
def test_metadata_of_a_prepared_folder(source: Path, content: bytes) -> None:
    (source / "dataset.json").write_text('{"sampling_rate": 16000}')
    (source / "metadata.csv").write_bytes(content)
    try:
        prepared = open_prepared(source)
    except VitsTrainerError as error:
        require_path(error, source)
        return
    finally:
        (source / "dataset.json").unlink()
    assert len(set(prepared.rows.filename)) == len(prepared.rows) > 0
    assert all(frames >= 1 for frames in prepared.frames(range(len(prepared.rows)), 256))


@FUZZ
@given(text=st.text(max_size=200))
def test_one_line_returns_a_single_line(text: str) -> None:
    line = one_line(text)
    assert "|" not in line
    assert len(line.splitlines()) <= 1
    assert one_line(line) == line


def require_config_or_one_line_error(path: Path) -> None:
    try:
        result: object = parser.parse("train_vits", TrainConfig, ["--config", str(path)])
    except ConfigError as error:
        result = str(error)
    assert isinstance(result, TrainConfig) or (result and len(str(result).splitlines()) == 1), result


@SLOW_FUZZ
@given(
    values=st.dictionaries(
        st.one_of(st.sampled_from(sorted(TrainConfig.__dataclass_fields__)), WORDS), PLAIN, max_size=4
    )
)
def test_configuration(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    require_config_or_one_line_error(path)


@SLOW_FUZZ
@given(text=st.text(max_size=100))
def test_configuration_file_of_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed_text.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    require_config_or_one_line_error(path)


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    prepared_folder(folder)
    assert main(["train_vits", *train_flags(folder, max_updates=1)]) == 0
    return folder / "checkpoints/checkpoint-1"


@FUZZ
@given(content=st.one_of(st.binary(max_size=100), PLAIN.map(lambda value: json.dumps(value).encode())))
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_manifest_and_state_of_a_checkpoint(checkpoint_dir: Path, name: str, content: bytes) -> None:
    good = (checkpoint_dir / name).read_bytes()
    (checkpoint_dir / name).write_bytes(content)
    try:
        with pytest.raises(CheckpointError, match="checkpoint-1"):
            verify_checkpoint(checkpoint_dir)
    finally:
        (checkpoint_dir / name).write_bytes(good)
    verify_checkpoint(checkpoint_dir)


@FUZZ
@given(data=st.data())
def test_any_flipped_byte_of_a_checkpoint(checkpoint_dir: Path, data: st.DataObject) -> None:
    files = sorted(path for path in checkpoint_dir.rglob("*") if path.is_file() and path.name not in ("manifest.json", MARKER))
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    offset = data.draw(st.integers(0, len(content) - 1))
    good = content[offset]
    content[offset] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        with pytest.raises(CheckpointError, match=path.name):
            verify_checkpoint(checkpoint_dir)
    finally:
        content[offset] = good
        path.write_bytes(content)
