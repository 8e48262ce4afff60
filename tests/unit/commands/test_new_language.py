"""``train_vits`` on texts that the voice's vocabulary does not cover: told, extended, resumed, spoken."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import VitsModel, VitsTokenizer

from tests.shards import TEXTS, write_shards
from tests.speech import voice
from tests.voices import MINIATURE, train_flags
from vits_trainer.__main__ import main
from vits_trainer.recordings import to_pcm16, write_pcm16_wav
from vits_trainer.text import load_tokenizer

ENGLISH = ["six small birds sing", "seven green fields", "a warm winter day", "the old road north"]
GERMAN = ["schöne grüße aus köln", "zwölf mädchen spielen", "die straße ist lang", "5 äpfel für mich"]
SETTINGS = {"max_updates": 2, "save_every_updates": 1, "validation_samples": 1, "report_to": "none"}


def prepared(folder: Path, texts: list[str]) -> Path:
    for n, _ in enumerate(texts):
        (folder / "wavs").mkdir(parents=True, exist_ok=True)
        write_pcm16_wav(folder / f"wavs/{n}.wav", to_pcm16(voice(1.2 + 0.1 * n, 16000, 120)), 16000)
    (folder / "metadata.csv").write_text("".join(f"{n}.wav|{text}\n" for n, text in enumerate(texts)), encoding="utf-8")
    (folder / "dataset.json").write_text('{"sampling_rate": 16000}')
    return folder


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A voice with an English vocabulary, and German clips."""
    folder = tmp_path_factory.mktemp("english")
    prepared(folder / "english", ENGLISH)
    prepared(folder / "training", GERMAN)
    places = {"data_dir": folder / "english", "output_dir": folder / "voice", "checkpoint_dir": folder / "updates"}
    assert main(["train_vits", *train_flags(folder, **SETTINGS, **places, run_name="english")]) == 0
    recipe = {key: value for key, value in MINIATURE.items() if key not in ("architecture", "discriminator")}
    (folder / "tuned.yaml").write_text(yaml.safe_dump({**recipe, "model_name": str(folder / "voice")}))
    return folder


def train(folder: Path, name: str, **changes: object) -> int:
    places = {"output_dir": folder / name, "checkpoint_dir": folder / f"{name}_updates", "run_name": name}
    settings = {**SETTINGS, "config": folder / "tuned.yaml", **places, **changes}
    return main(["train_vits", *train_flags(folder, **settings)])


def log(folder: Path, name: str) -> str:
    return (folder / f"training/runs/{name}/train.log").read_text(encoding="utf-8")


def test_characters_that_the_voice_lacks_are_told_and_written_down(english: Path) -> None:
    assert train(english, "told") == 0
    assert "ö (U+00F6 LATIN SMALL LETTER O WITH DIAERESIS) 3 times" in log(english, "told")
    assert "LEFT OUT" in log(english, "told")
    assert "--spell_numbers true reads numbers as words" in log(english, "told")
    with (english / "training/runs/told/vocabulary.csv").open(encoding="utf-8", newline="") as file:
        table = {row["character"]: row for row in csv.DictReader(file)}
    lacking = set("".join(GERMAN)) - set("".join(ENGLISH))
    times = {character: "".join(GERMAN).count(character) for character in lacking}
    assert {row["character"]: int(row["times"]) for row in table.values()} == times
    assert table["5"]["example"] == "5 äpfel für mich"


def test_voice_that_lacks_nothing_has_nothing_to_tell(english: Path) -> None:
    assert not (english / "english/runs/english/vocabulary.csv").exists()
    assert "vocabulary" not in (english / "english/runs/english/train.log").read_text()


def test_extended_voice_is_trained_resumed_and_loaded_by_plain_transformers(english: Path) -> None:
    assert train(english, "grown", extend_vocabulary="true", max_updates=1) == 0
    assert train(english, "grown", extend_vocabulary="true", resume_from_checkpoint="latest") == 0
    old, new = (VitsTokenizer.from_pretrained(english / name) for name in ("voice", "grown"))
    assert old.get_vocab().items() <= new.get_vocab().items()
    for text in GERMAN:
        assert "".join(new.convert_ids_to_tokens(new(text).input_ids[1::2])) == text
    model, report = VitsModel.from_pretrained(english / "grown", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.vocab_size == len(new)
    table = model.text_encoder.embed_tokens.weight
    assert len(table[len(old) :].unique(dim=0)) == len(new) - len(old)  # they have parted from their common mean
    assert torch.isfinite(table).all()
    lacking = set("".join(GERMAN)) - set("".join(ENGLISH))
    assert f"The vocabulary took in {len(lacking)} characters" in log(english, "grown")


def test_resuming_without_the_extension_is_refused(english: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(english, "other", extend_vocabulary="true", max_updates=1) == 0
    assert train(english, "other", resume_from_checkpoint="latest") == 2
    assert "extend_vocabulary True -> None" in capsys.readouterr().err


def test_numbers_are_learnt_and_spoken_as_words_of_the_language(english: Path) -> None:
    pytest.importorskip("num2words", reason="numbers as words need num2words")
    assert train(english, "spelled", spell_numbers="true", language="deu", extend_vocabulary="true") == 0
    tokenizer = load_tokenizer(str(english / "spelled"))
    assert "5" not in tokenizer.get_vocab()
    say = ["synthesize", "--model", str(english / "spelled"), "--output", str(english / "speech.wav")]
    spoken = []
    for text in ("5 äpfel", "fünf äpfel"):
        assert main([*say, "--text", text]) == 0
        spoken.append((english / "speech.wav").read_bytes())
    assert spoken[0] == spoken[1]


def test_phonemes_of_the_language_are_learnt_and_spoken(english: Path) -> None:
    pytest.importorskip("phonemizer", reason="phonemes need phonemizer-fork")
    flags = {**SETTINGS, "phonemize": "true", "language": "de", "run_name": "phonemes", "output_dir": english / "ipa"}
    assert main(["train_vits", *train_flags(english, **flags, checkpoint_dir=english / "ipa_updates")]) == 0
    assert json.loads((english / "ipa/tokenizer_config.json").read_text())["language"] == "de"
    assert {"ø", "ç", "ː"} <= load_tokenizer(str(english / "ipa")).get_vocab().keys()
    say = ["synthesize", "--model", str(english / "ipa"), "--output", str(english / "speech.wav")]
    assert main([*say, "--text", "Schöne Grüße"]) == 0


def test_characters_of_a_stream_are_told_and_added_from_its_summary(english: Path) -> None:
    write_shards(english / "shards", [6, 6])
    flags = {"data_dir": english / "shards", "streaming": "true", "data_workers": 0, "runs_dir": english / "runs"}
    assert train(english, "streamed", extend_vocabulary="true", **flags) == 0
    tokenizer = load_tokenizer(str(english / "streamed"))
    assert set("".join(TEXTS).lower()) <= set(tokenizer.get_vocab())
    with (english / "runs/streamed/vocabulary.csv").open(encoding="utf-8", newline="") as file:
        told = {(row["character"], row["times"]) for row in csv.DictReader(file)}
    assert told == {(character, "") for character in set("".join(TEXTS).lower()) - set("".join(ENGLISH))}


def test_phonemes_for_a_voice_of_letters_are_refused(english: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(english, "refused", phonemize="true") == 2
    assert "--phonemize true is for voices from scratch" in capsys.readouterr().err
