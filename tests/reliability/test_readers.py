"""Every reader of a structured file, with valid files that are changed at random: a result, or one line with exit 2.

FUZZ_EXAMPLES=10000 pytest tests/reliability/test_readers.py runs more examples.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save_file

from tests.support.checkpoints import write_checkpoint
from tests.support.foreign_checkpoints import write_original
from tests.support.odd_files import changed_json
from tests.support.random_voice import save_voice
from tests.support.shards import write_shards
from tests.support.voices import many_speakers
from vits_trainer.config import parser
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.streaming import open_stream
from vits_trainer.diagnostics import golden, replay
from vits_trainer.feedback.decision import Decision
from vits_trainer.feedback.training_process import read_updates
from vits_trainer.models import pretrained, voice_versions
from vits_trainer.models.conversion import importer
from vits_trainer.models.discriminator import Discriminator, load_discriminator, save_discriminator
from vits_trainer.text.tokenizer import load_tokenizer
from vits_trainer.tracking.html_report import read_run, render
from vits_trainer.training import checkpoint_record
from vits_trainer.utils.errors import VitsTrainerError
from vits_trainer.utils.files import marked_kind

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
FUZZ = settings(
    max_examples=EXAMPLES,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of one file."""

    file: Path
    valid: Any
    read: Callable[[], object]
    write: Callable[[bytes], object] | None = None
    """Stores JSON in a file of another format (None: the JSON is the file)."""
    may_fail: bool = True
    """Whether the reader raises an error rather than ignoring the file."""


def of_file(file: Path, read: Callable[[], object], may_fail: bool = True) -> Reader:
    return Reader(file, json.loads(file.read_text("utf-8")), read, may_fail=may_fail)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


def data_readers(root: Path) -> dict[str, Reader]:
    wavs, shards = many_speakers(root / "wavs", {"a": 2, "b": 1}), write_shards(root / "shards", [3, 2])
    (wavs / "dataset.json").write_text((shards / "dataset.json").read_text())
    return {
        "dataset.json": of_file(wavs / "dataset.json", lambda: open_prepared(wavs)),
        "dataset.json, streamed": of_file(shards / "dataset.json", lambda: open_stream(str(shards))),
        "shards.json": of_file(shards / "shards.json", lambda: open_prepared(shards)),
    }


def checkpoint_readers(root: Path) -> dict[str, Reader]:
    folder = write_checkpoint(root / "checkpoints/checkpoint-3")
    best = folder.parent / "best.json"
    best.write_text('{"checkpoint": "checkpoint-3", "validation/mel": 0.5}')
    return {
        "state.json": of_file(folder / "state.json", lambda: checkpoint_record.read_record(folder).fingerprint.run_name()),
        "manifest.json": of_file(folder / "manifest.json", lambda: checkpoint_record.verify_checkpoint(folder)),
        "best.json": of_file(best, lambda: checkpoint_record.best_checkpoint(folder.parent)),
    }


def voice_readers(root: Path) -> dict[str, Reader]:
    voice = save_voice(root / "voice")
    config = json.loads((voice / "config.json").read_text())
    (voice / "learnt.json").write_text('{"version": 2, "corrections": {"a": "0"}, "verdicts": [{"accepted": true}]}')
    (voice / "special_tokens_map.json").write_text('{"pad_token": "<pad>", "unk_token": "<unk>"}')
    (voice / "added_tokens.json").write_text("{}")
    sharded = root / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(10)}, sharded / "model-1.safetensors")
    index = sharded / "model.safetensors.index.json"
    index.write_text('{"metadata": {"total_size": 40}, "weight_map": {"a": "model-1.safetensors"}}')
    discriminator = Discriminator(DiscriminatorShape((2,), 16))
    weights = voice / "discriminator.safetensors"
    save_discriminator(discriminator, weights)
    tensors = discriminator.state_dict()

    def store_shape(content: bytes) -> None:
        save_file(tensors, weights, metadata={"shape": content.decode(errors="replace")})

    original = write_original(root / "original")
    names = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    return {
        "config.json": of_file(voice / "config.json", lambda: pretrained.read_config(str(voice))),
        "learnt.json": of_file(voice / "learnt.json", lambda: voice_versions.read_history(voice)),
        "index.json": of_file(index, lambda: pretrained.load_for_inference(str(sharded))),
        "discriminators": Reader(weights, {"periods": [2], "channels_divisor": 16}, lambda: load_discriminator(weights), store_shape),
        "config.json of VITS": of_file(root / "original/config.json", lambda: importer.import_voice(str(original))),
        **{name: of_file(voice / name, lambda: load_tokenizer(str(voice))) for name in names},
    }


def run_readers(root: Path) -> dict[str, Reader]:
    run = root / "work/runs/run"
    samples = run / "samples/update-000001"
    samples.mkdir(parents=True)
    contents = {
        "metrics.jsonl": {"update": 1, "epoch": 0, "generator/mel": 2.0, "validation/mel": 3.0},
        "rejected.jsonl": {"update": 1, "clip": "a", "kind": "too-short", "message": "x", "stage": "read"},
        "outcome.json": {"outcome": "done", "update": 1},
        "facts.json": {"plan": {"total_updates": 3}, "data": {"hours": 1.0, "accepted": 2}, "versions": {"torch": "2"}},
        "worst_clips.json": [{"clip": "a", "text": "b", "heard": "c", "figures": {"cer": 0.5}}],
        "config.yaml": {"best_metric": "mel", "wandb_tags": ["a"], "loss_weights": {"mel": 45.0}},
        "samples/update-000001/texts.json": ["one", "two"],
    }
    for name, content in contents.items():
        (run / name).write_text(json.dumps(content) + "\n")
    (samples / "0_speech.wav").write_bytes(b"RIFF")
    report = lambda: render(read_run(run))  # noqa: E731
    verdict = root / "verdict.json"
    change = {"before": 1.0, "after": 0.5}
    verdict.write_text(json.dumps({"accepted": True, "words": "better", "corrections": change, "learnt": ["a"], "version": 2}))
    marker = root / "marked/.vits_trainer.json"
    marker.parent.mkdir()
    marker.write_text('{"made by": "vits-trainer", "kind": "voice"}')
    return {
        **{f"report: {name}": of_file(run / name, report, may_fail=False) for name in contents},
        "facts.json": of_file(run / "facts.json", lambda: read_updates(root / "work", 0), may_fail=False),
        "metrics.jsonl": of_file(run / "metrics.jsonl", lambda: read_updates(root / "work", 0), may_fail=False),
        "verdict.json": of_file(verdict, lambda: str(Decision.read(verdict)), may_fail=False),
        "marker": of_file(marker, lambda: marked_kind(marker.parent), may_fail=False),
    }


def check_readers(root: Path) -> dict[str, Reader]:
    cases = root / "golden"
    cases.mkdir()
    save_file({"a": torch.zeros(1)}, cases / "a.safetensors")
    case = cases / "a.json"
    case.write_text('{"losses": {"loss_mel": 1.0}, "generator_gradient_norms": {"a": 1.0}, "config": {"n_vocab": 3}}')
    update = root / "rank0.safetensors"
    batch = {
        "0/tokens": torch.zeros(1, 3, dtype=torch.int64), "0/token_lengths": torch.tensor([3]),
        "0/frame_lengths": torch.tensor([5]), "0/waveform": torch.zeros(1, 5 * 256, dtype=torch.int16),
    }  # fmt: skip
    record = {"update": 3, "rank": 0, "seed": 1, "clips": [["a"]]}
    config = root / "settings.yaml"
    settings_of_run = {"batch_size": 2, "learning_rate": 1e-4, "loss_weights": {"mel": 45.0}, "adam_betas": [0.8, 0.99]}
    config.write_text(json.dumps(settings_of_run))

    def store_record(content: bytes) -> None:
        save_file(batch, update, metadata={"record": content.decode(errors="replace")})

    return {
        "golden case": of_file(case, lambda: golden.read_cases(cases)),
        "saved update": Reader(update, record, lambda: replay._read(update), store_record),
        "--config": of_file(config, lambda: parser.parse("train_vits", TrainConfig, ["--config", str(config)])),
    }


@pytest.fixture(scope="module")
def readers(root: Path) -> dict[str, Reader]:
    return {
        **data_readers(root), **checkpoint_readers(root), **voice_readers(root), **run_readers(root), **check_readers(root),
    }  # fmt: skip


NAMES = (
    "dataset.json", "dataset.json, streamed", "shards.json", "state.json", "manifest.json", "best.json", "config.json",
    "learnt.json", "index.json", "discriminators", "config.json of VITS", "vocab.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "report: metrics.jsonl", "report: rejected.jsonl",
    "report: outcome.json", "report: facts.json", "report: worst_clips.json", "report: config.yaml",
    "report: samples/update-000001/texts.json", "facts.json", "metrics.jsonl", "verdict.json", "marker", "golden case",
    "saved update", "--config",
)  # fmt: skip


SLOW = ("--config", "config.json of VITS", "index.json")


def error_of(read: Callable[[], object]) -> VitsTrainerError | None:
    try:
        read()
    except VitsTrainerError as error:
        return error
    return None


def test_every_reader_is_listed(readers: dict[str, Reader]) -> None:
    assert sorted(readers) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_any_content_gives_a_result_or_one_line(readers: dict[str, Reader], name: str) -> None:
    reader = readers[name]
    write = reader.write or reader.file.write_bytes

    @settings(FUZZ, max_examples=EXAMPLES if name not in SLOW else max(1, EXAMPLES // 4))
    @given(content=changed_json(reader.valid))
    def require_result_or_one_line(content: bytes) -> None:
        write(content)
        error = error_of(reader.read)
        if error is None:
            return
        assert reader.may_fail
        message = str(error)
        assert error.exit_code == 2
        assert len(message.splitlines()) == 1
        is_named = reader.file.name in message or str(reader.file.parent) in message
        assert is_named or (name == "--config" and "--" in message)
        assert len(message) < 2000

    try:
        write(json.dumps(reader.valid).encode())
        if name != "index.json":  # its weights are not those of a voice
            reader.read()
        require_result_or_one_line()
    finally:
        write(json.dumps(reader.valid).encode())


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 20, 100])
@pytest.mark.parametrize("name", ["saved update", "discriminators"])
def test_truncated_tensors_give_one_line(readers: dict[str, Reader], name: str, size: int) -> None:
    reader = readers[name]
    (reader.write or reader.file.write_bytes)(json.dumps(reader.valid).encode())
    good = reader.file.read_bytes()
    reader.file.write_bytes(good[:size])
    try:
        with pytest.raises(VitsTrainerError, match=reader.file.name):
            reader.read()
    finally:
        reader.file.write_bytes(good)
