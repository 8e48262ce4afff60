"""Data sets of the Hub, with the real client and load_dataset against a local server."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.audio import HUB_COMMIT, good_utterances, loopback_hub, mixed_utterances, write_parquet
from tests.support.limits import HANG_S, start_s
from tests.support.sources import clips_of, refusal, write_audio_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("repository")
    write_parquet(repository / "data" / "train-00000-of-00001.parquet", mixed_utterances())
    write_parquet(repository / "data" / "validated-00000-of-00001.parquet", good_utterances(2))
    write_parquet(repository / "data" / "test-00000-of-00001.parquet", [replace(good_utterances(1)[0], content=None)])
    with loopback_hub(repository) as address:
        yield address


# In a separate process: the client reads HF_ENDPOINT when it is imported, and keeps its cache in HF_HOME.
LIST_CLIPS = """
import json, sys
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.detect import open_source
for settings in json.loads(sys.argv[1]):
    try:
        source = open_source(PrepareConfig(dataset="owner/name", **settings))
        clips = [[c.clip_id, c.text, len(c.audio), c.speaker, c.rejection and c.rejection.reason] for c in source.clips]
        print(json.dumps([source.kind, source.revision, clips]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def in_a_process(address: str, home: Path, *settings: dict[str, str], program: str = LIST_CLIPS) -> list[Any]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", program, json.dumps(settings)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_clips_equal_those_of_the_same_local_parquet(tmp_path: Path, hub: str) -> None:
    local = {
        "train": clips_of(write_parquet(tmp_path / "a.parquet", mixed_utterances())),
        "validated": clips_of(write_parquet(tmp_path / "b.parquet", good_utterances(2))),
    }
    settings = ({}, {"split": "train+validated", "revision": "v1"}, {"text_column": "path"}, {"split": "nonsense"})
    train, both, named, nonsense, absent, config, no_audio = in_a_process(
        hub, tmp_path, *settings, {"text_column": "words"}, {"config_name": "kmr"}, {"split": "test"}
    )
    whole = [
        [clip.clip_id, clip.text, len(clip.audio), clip.speaker, clip.rejection and clip.rejection.reason]
        for clip in local["train"] + local["validated"]
    ]
    assert train == ["hub", HUB_COMMIT, whole[:10]]
    assert both == ["hub", HUB_COMMIT, whole]
    assert [clip[1] for clip in named[2]] == [clip[0] for clip in whole[:10]]
    assert nonsense[0] == absent[0] == config[0] == "DataError"
    assert "Bad split: nonsense. Available splits:" in nonsense[1]
    assert "no column words (--text_column); its columns are client_id, path, audio, sentence" in absent[1]
    assert "kmr" in config[1]
    assert "--config_name" in config[1]
    assert [clip[4] for clip in no_audio[2]] == ["missing-file"]


def test_a_data_set_with_a_loading_script_is_refused(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "name.py").write_text("raise SystemExit('it ran')")
    with loopback_hub(tmp_path / "repository") as address:
        ((kind, message),) = in_a_process(address, tmp_path / "home", {})
    assert kind == "DataError"
    assert "loading script, which is not run. Please download" in message


def test_recordings_in_single_files_are_refused(tmp_path: Path) -> None:
    """`datasets` reads them only with torchcodec."""
    write_audio_folder(tmp_path / "repository", "file_name,text\na.wav,Silav.", "a.wav")
    with loopback_hub(tmp_path / "repository") as address:
        ((kind, message),) = in_a_process(address, tmp_path / "home", {})
    assert kind == "DataError"
    assert "recordings in single files, which are not read from the Hub. Please download" in message


@pytest.mark.parametrize(
    ("dataset", "revision", "problem"),
    [
        ("owner/missing", None, "has no accessible data set of this name. Correct the name, or log in"),
        ("owner/gated", None, "Accept its terms on its page on the Hub and log in (hf auth login), or download"),
        ("owner/name", "v2", "has no revision v2"),
    ],
)
def test_errors_of_the_hub_are_one_line_with_the_remedy(
    hub: str, monkeypatch: pytest.MonkeyPatch, dataset: str, revision: str | None, problem: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    message = refusal(dataset, revision=revision)
    assert problem in message
    assert f"--dataset {dataset}" in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), [("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", True)])
def test_an_unreachable_hub_is_reported_immediately(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    import datasets  # noqa: F401  its import is not timed

    limit_s = start_s()
    start_time_s = time.monotonic()
    message = refusal("owner/name")
    assert time.monotonic() - start_time_s < 5 * limit_s
    assert "no such file or folder, and the Hugging Face Hub cannot be reached" in message
    assert "download the data set and give its folder" in message
    assert "\n" not in message


FIND_PARQUET = """
import json, sys
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.unprepared import open_unprepared
for settings in json.loads(sys.argv[1]):
    try:
        data = open_unprepared(TrainConfig(dataset="owner/name", streaming=True, **settings))
        sizes = [len(data.shards.read(group)["audio"][0].as_py()["bytes"]) for group in range(len(data.groups))]
        print(json.dumps([data.summary["source"], data.shard_names, data.clips, sizes]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def test_parquet_is_streamed_from_the_hub_as_it_lies(tmp_path: Path, hub: str) -> None:
    names = [f"data/{split}-00000-of-00001.parquet" for split in ("train", "validated")]
    source = {"kind": "hub", "dataset": "owner/name", "revision": HUB_COMMIT}
    train, both, nonsense = in_a_process(
        hub, tmp_path, {}, {"split": "train+validated"}, {"split": "nonsense"}, program=FIND_PARQUET
    )
    sizes = [len(utterances[0].content) for utterances in (mixed_utterances(), good_utterances(2))]
    assert train == [source, names[:1], 10, sizes[:1]]
    assert both == [source, names, 12, sizes]
    assert nonsense[0] == "DataError"
    assert nonsense[1].startswith("--dataset owner/name: no split nonsense; it has ")
