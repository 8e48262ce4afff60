"""Adding speakers and characters to a voice."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import VitsModel

from tests.support.models import SMALL, TOKENIZER, new_voice
from vits_trainer.config.architecture import Architecture, DecoderShape
from vits_trainer.models.extension import add_characters, add_speakers, replace_decoder
from vits_trainer.models.generator import Generator, GeneratorOutput
from vits_trainer.models.pretrained import export, load_model, speaker_ids
from vits_trainer.models.spectrogram import frame_mask
from vits_trainer.text import tokenizer as tokenizer_module
from vits_trainer.text.tokenizer import _create, build_tokenizer, encode
from vits_trainer.utils.errors import ConfigError, ModelError

PLAIN = replace(SMALL, use_stochastic_duration_prediction=False)


def trained_voice(*speakers: str, architecture: Architecture = SMALL) -> VitsModel:
    """Returns a voice whose zero-initialised weights are filled, as after training."""
    model = new_voice(*speakers, architecture=architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def synthesize(model: VitsModel, speaker_id: int | None = None) -> Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        speech: Tensor = model(**TOKENIZER("silav dinya", return_tensors="pt"), speaker_id=speaker_id).waveform
    return speech


def training_forward(model: VitsModel, speaker_ids: list[int] | None) -> GeneratorOutput:
    """Runs the training forward pass on two clips."""
    torch.manual_seed(7)
    lengths = torch.tensor([60, 48])
    spectrogram = torch.rand(2, 513, 60) * frame_mask(lengths, 60)
    ids = None if speaker_ids is None else torch.tensor(speaker_ids)
    generator = Generator(model, "posterior", 8)
    output: GeneratorOutput = generator(torch.randint(1, 8, (2, 11)), torch.tensor([11, 9]), spectrogram, lengths, ids)
    return output


@pytest.mark.parametrize("architecture", [SMALL, PLAIN], ids=["stochastic durations", "plain durations"])
def test_each_speaker_of_an_extended_voice_sounds_like_the_original(architecture: Architecture) -> None:
    old = trained_voice(architecture=architecture)
    torch.manual_seed(1)
    new = add_speakers(old, ["ava", "bo", "cem"])
    for speaker_id in range(3):
        assert torch.equal(synthesize(new, speaker_id), synthesize(old))
    outputs = training_forward(old, None), training_forward(new, [2, 1])
    for name, before, after in zip(GeneratorOutput._fields, *outputs, strict=True):
        assert torch.equal(before, after), name
    assert not torch.equal(new.embed_speaker.weight[0], new.embed_speaker.weight[1])
    assert 0.9 < float(new.embed_speaker.weight.detach().std()) < 1.1


def test_zero_conditioning_gets_gradients_and_separates_speakers_after_a_step() -> None:
    model = add_speakers(trained_voice(), ["ava", "bo"])
    output = training_forward(model, [0, 1])
    total = output.waveform.square().sum() + output.duration_loss.sum() + output.latents.square().sum()
    torch.autograd.backward(total)
    layers = {name: layer for name, layer in model.named_modules() if name.endswith(("cond", "cond_layer"))}
    # In the duration predictor, the posterior encoder, the decoder and each of two flows.
    assert len(layers) == 5
    for name, layer in layers.items():
        weight = getattr(layer, "parametrizations", None)
        gradient = layer.weight.grad if weight is None else weight.weight.original0.grad
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    torch.optim.SGD(model.parameters(), 1e-4).step()
    model.zero_grad()
    assert not torch.equal(synthesize(model, 0), synthesize(model, 1))
    torch.autograd.backward(training_forward(model, [0, 1]).waveform.square().sum())
    assert (model.embed_speaker.weight.grad.abs().amax(dim=1) > 0).all()


def test_multi_speaker_voice_keeps_its_speakers_and_adds_their_mean() -> None:
    old = trained_voice("bo", "dan")
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    new = add_speakers(old, ["ava", "bo", "cem"])
    assert new.config.speakers == ["bo", "dan", "ava", "cem"]
    assert new.config.num_speakers == 4
    for speaker_id in range(2):
        assert torch.equal(synthesize(new, speaker_id), synthesize(old, speaker_id))
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor[:2] if name == "embed_speaker.weight" else tensor, before[name]), name
    mean = (before["embed_speaker.weight"][0] + before["embed_speaker.weight"][1]) / 2
    torch.testing.assert_close(new.embed_speaker.weight[2:], torch.stack([mean, mean]))
    assert (old.config.num_speakers, old.config.speakers) == (2, ["bo", "dan"])


def test_voice_with_all_speakers_is_unchanged() -> None:
    old = trained_voice("bo", "dan")
    new = add_speakers(old, ["dan"])
    assert new.config.speakers == ["bo", "dan"]
    assert all(torch.equal(tensor, old.state_dict()[name]) for name, tensor in new.state_dict().items())


def test_unnamed_speakers_are_identified_by_their_ids() -> None:
    old = trained_voice("bo", "dan")
    del old.config.speakers
    new = add_speakers(old, ["ava", "1"])
    assert new.config.speakers == ["0", "1", "ava"]
    assert speaker_ids(new.config, ["1", "ava"]) == {"0": 0, "1": 1, "ava": 2}


def test_unused_conditioning_of_a_single_speaker_voice_stays_inactive() -> None:
    """Converted single-speaker voices can contain such layers, which were never trained."""
    old = trained_voice("bo", "dan")
    old.config.num_speakers = 1
    del old.config.speakers, old.embed_speaker
    new = add_speakers(old, ["ava", "bo"])
    assert torch.equal(synthesize(new, 1), synthesize(old))


def test_extended_voice_is_loaded_by_transformers_with_its_speakers(tmp_path: Path) -> None:
    old = trained_voice()
    export(add_speakers(old, ["ava", "b|o"]), TOKENIZER, None, tmp_path / "out")
    loaded, report = VitsModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.speakers == ["ava", "b|o"]
    torch.testing.assert_close(synthesize(loaded, 1), synthesize(old), atol=1e-6, rtol=1e-4)
    assert any("cond_layer" in name for name in load_file(tmp_path / "out/model.safetensors"))
    first, second = (synthesize(load_model(str(tmp_path / "out")), speaker_id) for speaker_id in (0, 1))
    assert torch.equal(first, second)


def test_extension_without_new_named_speakers_is_rejected() -> None:
    with pytest.raises(ModelError, match="the voice and the data have one speaker each"):
        add_speakers(trained_voice(), ["ava"])
    with pytest.raises(ModelError, match="without a speaker name"):
        add_speakers(trained_voice("bo", "dan"), ["", "ava"])


TEXTS = ["Silav dinya.", "Çêlek û çem!", "Silav, ç 5"]


def test_added_characters_start_at_the_mean_of_existing_embeddings():
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


def test_model_is_unchanged_without_missing_characters():
    voice = new_voice()
    before = voice.text_encoder.embed_tokens
    assert add_characters(voice, TOKENIZER, ["silav!"]) is TOKENIZER
    assert voice.text_encoder.embed_tokens is before


def test_punctuation_is_added_to_phonemes_only(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "romanize", lambda text: text.replace("ж", "zh"))
    voice, latin = new_voice(), build_tokenizer(["silav"])
    latin.is_uroman = True
    assert add_characters(voice, latin, ["silav, ж!"]).encoder.keys() - latin.encoder.keys() == set("zh")


def test_new_letters_do_not_reuse_existing_ids():
    """Covers ids with gaps, as left by a conversion, and two characters with the same id."""
    gaps = _create({"_": 0, "a": 1, "b": 5, "c": 5}, **dict.fromkeys(("pad_token", "unk_token"), "_"), phonemize=False)
    voice = new_voice()
    old = voice.text_encoder.embed_tokens.weight.detach().clone()
    larger = add_characters(voice, gaps, ["abçd"])
    assert {sign: larger.encoder[sign] for sign in "_abcçd"} == {"_": 0, "a": 1, "b": 5, "c": 5, "d": 6, "ç": 7}
    assert torch.equal(voice.text_encoder.embed_tokens.weight[:6], old[:6])


LIGHT = DecoderShape(32, (8, 8, 4), (16, 16, 8), (3, 5, 7), ((1, 3), (1, 3), (1, 3)))


@pytest.mark.parametrize("speakers", [(), ("ava", "bo")], ids=["one speaker", "two speakers"])
def test_voice_with_a_new_decoder_keeps_the_rest_and_is_loaded_again(speakers: tuple[str, ...], tmp_path: Path) -> None:
    old = trained_voice(*speakers)
    new = replace_decoder(old, LIGHT)
    kept = {name: weight for name, weight in old.state_dict().items() if not name.startswith("decoder.")}
    assert all(torch.equal(new.state_dict()[name], weight) for name, weight in kept.items())
    assert [tuple(layer.weight.shape) for layer in new.decoder.upsampler] == [(32, 16, 16), (16, 8, 16), (8, 4, 8)]
    assert {block.convs1[0].kernel_size for block in new.decoder.resblocks} == {(3,), (5,), (7,)}
    ids = [1, 0] if speakers else None
    before, after = training_forward(old, ids), training_forward(new, ids)
    assert torch.equal(before.latents, after.latents)
    assert before.waveform.shape == after.waveform.shape
    assert not torch.equal(before.waveform, after.waveform)
    export(new, TOKENIZER, None, tmp_path / "voice", 0)
    assert torch.allclose(synthesize(load_model(str(tmp_path / "voice"))), synthesize(new), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample_rates": (8, 4, 4), "upsample_kernel_sizes": (16, 8, 8)}, "their product is 128 samples"),
        ({"upsample_rates": (8, 8), "upsample_kernel_sizes": (16, 16, 8)}, "one kernel size per rate"),
        ({"upsample_initial_channel": 12}, "--decoder.upsample_initial_channel 12: must be a multiple of 8"),
        ({"resblock_kernel_sizes": (3, 5)}, "--decoder.resblock_kernel_sizes"),
    ],
)
def test_decoder_that_does_not_fit_is_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace_decoder(trained_voice(), replace(LIGHT, **changes))
