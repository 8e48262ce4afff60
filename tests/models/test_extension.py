"""A voice that gets more speakers: it sounds as before, and can learn to tell them apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import VitsModel

from tests.support.models import SMALL, TOKENIZER, new_voice
from vits_trainer.config.architecture import Architecture
from vits_trainer.models.extension import add_characters, add_speakers
from vits_trainer.models.generator import Generator, GeneratorOutput
from vits_trainer.models.pretrained import export, load_model, speaker_ids
from vits_trainer.models.spectrogram import frame_mask
from vits_trainer.text import tokenizer as tokenizer_module
from vits_trainer.text.tokenizer import _create, build_tokenizer, encode
from vits_trainer.utils.errors import ModelError

PLAIN = replace(SMALL, use_stochastic_duration_prediction=False)


def trained_voice(*speakers: str, architecture: Architecture = SMALL) -> VitsModel:
    """Weights everywhere, also where training starts at zero."""
    model = new_voice(*speakers, architecture=architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def spoken(model: VitsModel, speaker_id: int | None = None) -> Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        speech: Tensor = model(**TOKENIZER("silav dinya", return_tensors="pt"), speaker_id=speaker_id).waveform
    return speech


def one_pass(model: VitsModel, speaker_ids: list[int] | None) -> GeneratorOutput:
    """The training direction, on two clips."""
    torch.manual_seed(7)
    lengths = torch.tensor([60, 48])
    spectrogram = torch.rand(2, 513, 60) * frame_mask(lengths, 60)
    ids = None if speaker_ids is None else torch.tensor(speaker_ids)
    generator = Generator(model, "posterior", 8)
    found: GeneratorOutput = generator(torch.randint(1, 8, (2, 11)), torch.tensor([11, 9]), spectrogram, lengths, ids)
    return found


@pytest.mark.parametrize("architecture", [SMALL, PLAIN], ids=["stochastic durations", "plain durations"])
def test_each_speaker_of_an_extended_voice_sounds_as_the_one_did(architecture: Architecture) -> None:
    old = trained_voice(architecture=architecture)
    torch.manual_seed(1)
    new = add_speakers(old, ["ava", "bo", "cem"])
    for speaker_id in range(3):
        assert torch.equal(spoken(new, speaker_id), spoken(old))
    for name, before, after in zip(GeneratorOutput._fields, one_pass(old, None), one_pass(new, [2, 1]), strict=True):
        assert torch.equal(before, after), name
    assert not torch.equal(new.embed_speaker.weight[0], new.embed_speaker.weight[1])
    assert 0.9 < float(new.embed_speaker.weight.detach().std()) < 1.1


def test_conditioning_of_zero_gets_gradients_everywhere_and_then_tells_speakers_apart() -> None:
    model = add_speakers(trained_voice(), ["ava", "bo"])
    found = one_pass(model, [0, 1])
    total = found.waveform.square().sum() + found.duration_loss.sum() + found.latents.square().sum()
    torch.autograd.backward(total)
    layers = {name: layer for name, layer in model.named_modules() if name.endswith(("cond", "cond_layer"))}
    # Of the duration predictor, the posterior encoder, the decoder and each of two flows.
    assert len(layers) == 5
    for name, layer in layers.items():
        weight = getattr(layer, "parametrizations", None)
        gradient = layer.weight.grad if weight is None else weight.weight.original0.grad
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    torch.optim.SGD(model.parameters(), 1e-4).step()
    model.zero_grad()
    assert not torch.equal(spoken(model, 0), spoken(model, 1))
    torch.autograd.backward(one_pass(model, [0, 1]).waveform.square().sum())
    assert (model.embed_speaker.weight.grad.abs().amax(dim=1) > 0).all()


def test_voice_of_several_keeps_its_speakers_and_new_ones_start_at_their_mean() -> None:
    old = trained_voice("bo", "dan")
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    new = add_speakers(old, ["ava", "bo", "cem"])
    assert new.config.speakers == ["bo", "dan", "ava", "cem"]
    assert new.config.num_speakers == 4
    for speaker_id in range(2):
        assert torch.equal(spoken(new, speaker_id), spoken(old, speaker_id))
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor[:2] if name == "embed_speaker.weight" else tensor, before[name]), name
    mean = (before["embed_speaker.weight"][0] + before["embed_speaker.weight"][1]) / 2
    torch.testing.assert_close(new.embed_speaker.weight[2:], torch.stack([mean, mean]))
    assert (old.config.num_speakers, old.config.speakers) == (2, ["bo", "dan"])


def test_voice_that_knows_all_speakers_stays_the_same() -> None:
    old = trained_voice("bo", "dan")
    new = add_speakers(old, ["dan"])
    assert new.config.speakers == ["bo", "dan"]
    assert all(torch.equal(tensor, old.state_dict()[name]) for name, tensor in new.state_dict().items())


def test_speakers_without_names_are_known_by_their_numbers() -> None:
    old = trained_voice("bo", "dan")
    del old.config.speakers
    new = add_speakers(old, ["ava", "1"])
    assert new.config.speakers == ["0", "1", "ava"]
    assert speaker_ids(new.config, ["1", "ava"]) == {"0": 0, "1": 1, "ava": 2}


def test_unused_conditioning_of_a_one_speaker_voice_is_not_woken() -> None:
    """Converted voices of one speaker may carry such layers, which nothing ever ran through."""
    old = trained_voice("bo", "dan")
    old.config.num_speakers = 1
    del old.config.speakers, old.embed_speaker
    new = add_speakers(old, ["ava", "bo"])
    assert torch.equal(spoken(new, 1), spoken(old))


def test_extended_voice_comes_back_in_transformers_with_its_speakers(tmp_path: Path) -> None:
    old = trained_voice()
    export(add_speakers(old, ["ava", "b|o"]), TOKENIZER, None, tmp_path / "out")
    loaded, report = VitsModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.speakers == ["ava", "b|o"]
    torch.testing.assert_close(spoken(loaded, 1), spoken(old), atol=1e-6, rtol=1e-4)
    assert any("cond_layer" in name for name in load_file(tmp_path / "out/model.safetensors"))
    assert torch.equal(spoken(load_model(str(tmp_path / "out")), 0), spoken(load_model(str(tmp_path / "out")), 1))


def test_nothing_to_extend_by_is_refused() -> None:
    with pytest.raises(ModelError, match="the voice has one speaker, and so have the data"):
        add_speakers(trained_voice(), ["ava"])
    with pytest.raises(ModelError, match="without a speaker's name"):
        add_speakers(trained_voice("bo", "dan"), ["", "ava"])


TEXTS = ["Silav dinya.", "Çêlek û çem!", "Silav, ç 5"]


def test_extension_leaves_old_embeddings_and_starts_new_ones_at_their_mean():
    voice = new_voice()
    old = voice.text_encoder.embed_tokens.weight.detach().clone()
    larger = add_characters(voice, TOKENIZER, TEXTS)
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
    assert add_characters(voice, TOKENIZER, ["silav!"]) is TOKENIZER
    assert voice.text_encoder.embed_tokens is before


def test_punctuation_is_added_to_phonemes_only(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "romanize", lambda given: given.replace("ж", "zh"))
    voice, latin = new_voice(), build_tokenizer(["silav"])
    latin.is_uroman = True
    assert add_characters(voice, latin, ["silav, ж!"]).encoder.keys() - latin.encoder.keys() == set("zh")


def test_new_letters_take_no_id_of_an_old_one():
    """Ids with gaps, as a conversion may leave them, and two characters of one id."""
    gaps = _create({"_": 0, "a": 1, "b": 5, "c": 5}, **dict.fromkeys(("pad_token", "unk_token"), "_"), phonemize=False)
    voice = new_voice()
    old = voice.text_encoder.embed_tokens.weight.detach().clone()
    larger = add_characters(voice, gaps, ["abçd"])
    assert {sign: larger.encoder[sign] for sign in "_abcçd"} == {"_": 0, "a": 1, "b": 5, "c": 5, "d": 6, "ç": 7}
    assert torch.equal(voice.text_encoder.embed_tokens.weight[:6], old[:6])
