"""Redaction of secrets."""

from pathlib import Path

import pytest

from vits_trainer.utils.redaction import HIDDEN, redacted

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
        ("https://h/x?sig=a%2Fb&y=1", f"https://h/x?sig={HIDDEN}&y=1"),
        ("https://h/x?a=1&X-Amz-Signature=ab#part", f"https://h/x?a=1&X-Amz-Signature={HIDDEN}#part"),
        ("https://h/x?access_token=a", f"https://h/x?access_token={HIDDEN}"),
        ("https://h/x?api_key=a&api-key=b", f"https://h/x?api_key={HIDDEN}&api-key={HIDDEN}"),
        ("https://only-a-token@host/x", f"https://{HIDDEN}@host/x"),
        ("ghp_" + "a" * 36, HIDDEN),
        ("github_pat_" + "A1" * 20, HIDDEN),
        ("sk-" + "a" * 30, HIDDEN),
        ("AKIA" + "A1" * 8, HIDDEN),
        ({"wandb_key": "x"}, {"wandb_key": HIDDEN}),
        ({"tokens": ["a", "b"], "secrets": {"a": "b"}}, {"tokens": [HIDDEN, HIDDEN], "secrets": {"a": HIDDEN}}),
        ({TOKEN: 1}, {HIDDEN: 1}),
        (Path("/data") / TOKEN, f"/data/{HIDDEN}"),
        (Path("/data/set"), Path("/data/set")),
        ({"password": 12345678}, {"password": HIDDEN}),
        ({"password": None, "use_token": True, "tokens": 180}, {"password": None, "use_token": True, "tokens": 180}),
        ("user@example.org, risk-averse, max_tokens=5", "user@example.org, risk-averse, max_tokens=5"),
    ],
)  # fmt: skip
def test_secret_names_and_formats_are_redacted(value: object, expected: object) -> None:
    assert redacted(value) == expected


def test_secrets_of_the_environment_are_redacted_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("SHORT_SECRET", "word")
    assert redacted("key=0123456789abcdef0123456789abcdef; a word") == f"key={HIDDEN}; a word"
