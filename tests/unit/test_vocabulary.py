"""What a vocabulary lacks is told with counts and examples, and added without touching what is there."""

import csv

import torch
from transformers import pipeline

from tests.unit.test_models import TOKENIZER, new_voice
from tests.voices import prepared_folder, train_flags
from vits_trainer import text
from vits_trainer.__main__ import main
from vits_trainer.models import export, load_model
from vits_trainer.text import _made, build_tokenizer, encode, load_tokenizer, tokenizer_of
from vits_trainer.vocabulary import extend, missing_characters, report, write

TEXTS = ["Silav dinya.", "Çêlek û çem!", "Silav, ç 5"]


def test_missing_characters_are_counted_with_an_example():
    found = {m.character: (m.count, m.example) for m in missing_characters(TOKENIZER, TEXTS)}
    # Vocabulary: "silav dinya", in lower case
    assert found["ç"] == (3, "Çêlek û çem!")
    assert found["e"] == (2, "Çêlek û çem!")
    assert found["5"] == (1, "Silav, ç 5")
    assert found.keys() == set("çêeûkm5.,!")


def test_report_tells_letters_from_punctuation(tmp_path):
    missing = missing_characters(TOKENIZER, TEXTS)
    letters, punctuation = report(missing)
    assert letters.startswith("7 letters or digits of the texts are not in the voice's vocabulary")
    assert "left out: 'ç' 3 times ('Çêlek û çem!')" in letters
    assert "--extend_vocabulary true" in letters
    assert set(punctuation.rpartition(": ")[2].split()) == set(".,!")
    assert report([]) == []
    write(tmp_path / "vocabulary.csv", missing)
    with (tmp_path / "vocabulary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "character": "ç", "name": "LATIN SMALL LETTER C WITH CEDILLA", "count": "3", "example": "Çêlek û çem!"
    }  # fmt: skip


def test_upper_case_of_the_vocabulary_is_not_missing():
    assert missing_characters(build_tokenizer(["ab"]), ["AB ab"]) == []
    upper = tokenizer_of(["_", "A", "b", " "])
    assert [(m.character, m.count) for m in missing_characters(upper, ["Ab aB"])] == [("a", 1)]


def test_cells_of_the_table_are_no_formulas(tmp_path):
    write(tmp_path / "vocabulary.csv", missing_characters(build_tokenizer(["ab"]), ["=a+b"]))
    with (tmp_path / "vocabulary.csv").open(newline="") as file:
        rows = [(row["character"], row["example"]) for row in csv.DictReader(file)]
    assert rows == [("'+", "'=a+b"), ("'=", "'=a+b")]


def test_phonemes_that_are_missing_are_told_as_such():
    tokenizer = build_tokenizer(["the end"], "en", reads_phonemes=True)
    found = {m.character for m in missing_characters(tokenizer, ["the fish"])}
    # "the" alone has another vowel than before "end"
    assert found == {"f", "ʃ", "ə"}


def test_extension_leaves_old_embeddings_and_starts_new_ones_at_their_mean():
    voice = new_voice()
    old = voice.text_encoder.embed_tokens.weight.detach().clone()
    larger = extend(voice, TOKENIZER, TEXTS)
    new = voice.text_encoder.embed_tokens.weight
    assert set(larger.encoder) - set(TOKENIZER.encoder) == set("çêeûkm5")
    assert torch.equal(new[: len(old)], old)
    assert len(new) == len(larger.encoder) == voice.config.vocab_size
    for row in new[len(old) :]:
        torch.testing.assert_close(row, old.mean(0))
    assert encode(larger, "silav").tolist() == encode(TOKENIZER, "silav").tolist()


def test_nothing_is_changed_where_nothing_is_missing():
    voice = new_voice()
    before = voice.text_encoder.embed_tokens
    assert extend(voice, TOKENIZER, ["silav!"]) is TOKENIZER
    assert voice.text_encoder.embed_tokens is before


def test_voice_learns_new_letters_and_goes_on(tmp_path):
    """An English-like vocabulary, texts with letters that it lacks: the report, the extension, a resumed run."""
    prepared_folder(tmp_path, clips=8)  # "number 0 speaks"
    metadata = tmp_path / "training/metadata.csv"
    metadata.write_text(metadata.read_text().replace("speaks", "grüßt"), encoding="utf-8")
    voice = new_voice()
    export(voice, TOKENIZER, None, tmp_path / "english")
    flags = {"model_name": str(tmp_path / "english"), "architecture": "null", "report_to": "none"}
    flags |= {"validation_samples": 0, "discriminator_warmup_updates": 0}
    told = train_flags(tmp_path, **flags, max_updates=1)
    assert main(["train_vits", *told]) == 0
    log = (tmp_path / "training/runs/run/train.log").read_text()
    assert "letters or digits of the texts are not in the voice's vocabulary" in log
    assert "'r' 16 times ('number 0 grüßt')" in log
    assert "ü,LATIN SMALL LETTER U WITH DIAERESIS,8" in (tmp_path / "training/runs/run/vocabulary.csv").read_text()

    changes = {**flags, "extend_vocabulary": "true", "checkpoint_dir": tmp_path / "extended", "run_name": "extended"}
    assert main(["train_vits", *train_flags(tmp_path, **changes, max_updates=2)]) == 0
    resumed = train_flags(tmp_path, **changes, max_updates=3, resume_from_checkpoint="latest")
    assert main(["train_vits", *resumed]) == 0
    assert "letters or digits" not in (tmp_path / "training/runs/extended/train.log").read_text()
    result = tmp_path / "final_model"
    tokenizer = load_tokenizer(str(result))
    assert {"ü", "ß"} <= tokenizer.encoder.keys()
    assert all(tokenizer.encoder[token] == index for token, index in TOKENIZER.encoder.items())
    learnt = load_model(str(result)).text_encoder.embed_tokens.weight
    mean = voice.text_encoder.embed_tokens.weight.mean(0)
    assert not torch.equal(learnt[tokenizer.encoder["ü"]], mean)
    assert pipeline("text-to-speech", model=str(result))("grüßt")["audio"].size > 0


def test_punctuation_is_added_to_phonemes_only(monkeypatch):
    monkeypatch.setattr(text, "romanised", lambda given: given.replace("ж", "zh"))
    voice, latin = new_voice(), build_tokenizer(["silav"])
    latin.is_uroman = True
    assert extend(voice, latin, ["silav, ж!"]).encoder.keys() - latin.encoder.keys() == set("zh")


def test_new_letters_take_no_id_of_an_old_one():
    """Ids with gaps, as a conversion may leave them, and two characters of one id."""
    gaps = _made({"_": 0, "a": 1, "b": 5, "c": 5}, **dict.fromkeys(("pad_token", "unk_token"), "_"), phonemize=False)
    voice = new_voice()
    old = voice.text_encoder.embed_tokens.weight.detach().clone()
    larger = extend(voice, gaps, ["abçd"])
    assert {sign: larger.encoder[sign] for sign in "_abcçd"} == {"_": 0, "a": 1, "b": 5, "c": 5, "d": 6, "ç": 7}
    assert torch.equal(voice.text_encoder.embed_tokens.weight[:6], old[:6])
