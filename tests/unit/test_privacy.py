"""No secret in what goes to Weights & Biases."""

from pathlib import Path

import pytest

from tests.voices import ended_wandb_run, prepared_folder, train_flags
from vits_trainer.__main__ import main
from vits_trainer.privacy import HIDDEN, redacted

TOKEN = "hf_" + "Ab1" * 10


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"hf_token": "anything"}, {"hf_token": HIDDEN}),
        ({"api_key": "anything", "deep": [{"PASSWORD": "x"}]}, {"api_key": HIDDEN, "deep": [{"PASSWORD": HIDDEN}]}),
        ({"source": f"https://user:{TOKEN}@host/data"}, {"source": f"https://{HIDDEN}@host/data"}),
        (f"401 for {TOKEN}", f"401 for {HIDDEN}"),
        ("wandb_v1_" + "x" * 30, HIDDEN),
        ("get https://host/x?token=abc&y=1", f"get https://host/x?token={HIDDEN}&y=1"),
        ({"token_lengths": "3", "tokenizer": "vits"}, {"token_lengths": "3", "tokenizer": "vits"}),
        ({"learning_rate": 1e-4, "none": None, "yes": True}, {"learning_rate": 1e-4, "none": None, "yes": True}),
        (("a", "b"), ("a", "b")),
    ],
)  # fmt: skip
def test_what_is_redacted(value: object, expected: object) -> None:
    assert redacted(value) == expected


def test_a_secret_of_the_environment_is_hidden_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("SHORT_SECRET", "word")
    assert redacted("key=0123456789abcdef0123456789abcdef; a word") == f"key={HIDDEN}; a word"


def test_no_file_of_a_wandb_run_has_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the environment, the configuration, the data set's description, and an error's message."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_MODE", "offline")
    prepared_folder(tmp_path)
    summary = tmp_path / "training/dataset.json"
    summary.write_text(summary.read_text().replace('"dataset": "', f'"dataset": "https://user:{TOKEN}@host/', 1))
    (tmp_path / "training/wavs/audio_000003.wav").unlink()

    def telling(path: object) -> None:
        raise OSError(f"https://host/clip.wav?token={TOKEN}")

    monkeypatch.setattr("vits_trainer.stores.read_pcm16_wav", telling)
    assert main(["train_vits", *train_flags(tmp_path, wandb_tags=f"[{TOKEN}]", validation_fraction=0)]) == 1
    run = tmp_path / "training/runs/run"
    ended_wandb_run(run)
    assert TOKEN in (run / "rejected.jsonl").read_text()  # it was there to be told
    files = [path for path in (run / "wandb").rglob("*") if path.is_file()]
    assert files
    assert [str(path) for path in files if TOKEN.encode() in path.read_bytes()] == []
