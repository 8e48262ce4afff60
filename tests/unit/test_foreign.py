"""Voices of other trainers: read into the very numbers, sized by their weights; what does not fit is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import VitsModel

from tests.foreign import SYMBOLS, coqui_name, golden_weights, write_coqui, write_original, write_piper
from vits_trainer import conversion, foreign, golden
from vits_trainer.architecture import DiscriminatorShape
from vits_trainer.discriminator import Discriminator
from vits_trainer.errors import ModelError
from vits_trainer.models import in_training_form
from vits_trainer.text import encode

CASES = ("single_sdp", "multi_sdp")
SMALL = DiscriminatorShape((2, 3), 16)


def expected_model(case: str) -> VitsModel:
    """As the golden test fills it, from the case's configuration: not from the weights' sizes."""
    weights, config = golden_weights(case)
    model = in_training_form(VitsModel(golden.vits_config(config))).eval()
    model.load_state_dict(conversion.from_original_generator(weights, model.state_dict()))
    return model


def assert_same_weights(model: VitsModel, other: VitsModel, but: str = "") -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ([but] if but else [])


def speech(model: VitsModel, tokens: torch.Tensor, speaker: int | None = None) -> torch.Tensor:
    model.noise_scale = model.noise_scale_duration = 0.0
    with torch.no_grad():
        return model(tokens, speaker_id=speaker, speaking_rate=1.0).waveform


@pytest.mark.parametrize("case", CASES)
def test_original_voice_is_sized_by_its_weights_and_filled_with_them(tmp_path: Path, case: str) -> None:
    judges = Discriminator(SMALL)
    voice = foreign.read(str(write_original(tmp_path, case, judges)))
    assert voice.kind == "original"
    assert_same_weights(voice.model, expected_model(case))
    sizes = golden.vits_config(golden_weights(case)[1]).to_dict()
    ours = voice.model.config.to_dict()
    differing = {name for name in sizes if ours[name] != sizes[name]}
    assert differing <= {"hidden_dropout", "attention_dropout", "activation_dropout", "resblock_kernel_sizes"}
    assert list(ours["resblock_kernel_sizes"]) == list(sizes["resblock_kernel_sizes"])
    assert voice.discriminator is not None
    assert all(torch.equal(t, judges.state_dict()[name]) for name, t in voice.discriminator.state_dict().items())


def test_symbols_of_mms_are_the_lines_of_vocab_txt(tmp_path: Path) -> None:
    write_original(tmp_path)
    tokenizer = foreign.read(str(tmp_path)).tokenizer  # the folder, whose one checkpoint is found
    assert encode(tokenizer, "Şû a").tolist() == [
        0, SYMBOLS.index("ş"), 0, SYMBOLS.index("û"), 0, SYMBOLS.index(" "), 0, SYMBOLS.index("a"), 0
    ]  # fmt: skip
    twice = max(index for index, symbol in enumerate(SYMBOLS) if symbol == "ê")
    assert tokenizer.encoder["ê"] == twice  # as the original's dictionary has it
    assert len(tokenizer) == 40


def test_uroman_and_phonemes_are_known_from_the_configuration(tmp_path: Path) -> None:
    write_original(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["data"]["training_files"] = "train.uroman"
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = foreign.read(str(tmp_path)).tokenizer
    assert (tokenizer.is_uroman, tokenizer.phonemize, tokenizer.add_blank) == (True, False, True)
    config["data"] |= {"training_files": "filelists/train.txt", "text_cleaners": ["english_cleaners2", "shout"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    voice = foreign.read(str(tmp_path))
    assert (voice.tokenizer.is_uroman, voice.tokenizer.phonemize) == (False, True)
    assert any("shout" in note for note in voice.notes)


def test_newest_checkpoint_of_a_folder_is_read(tmp_path: Path) -> None:
    write_original(tmp_path, number=9000)
    write_original(tmp_path, number=10000)
    for path, value in ((tmp_path / "G_9000.pth", 1.0), (tmp_path / "G_10000.pth", 2.0)):
        content = torch.load(path)
        content["model"]["enc_p.emb.weight"].fill_(value)
        torch.save(content, path)
    assert foreign.read(str(tmp_path)).model.text_encoder.embed_tokens.weight[0, 0] == 2


def test_voice_without_its_symbols_says_where_to_get_them(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    (tmp_path / "vocab.txt").rename(tmp_path / "elsewhere.txt")
    with pytest.raises(ModelError, match=r"G_100000\.pth has 40 symbols.*--vocab"):
        foreign.read(str(checkpoint))
    assert len(foreign.read(str(checkpoint), vocab=tmp_path / "elsewhere.txt").tokenizer) == 40
    config = json.loads((tmp_path / "config.json").read_text()) | {"symbols": SYMBOLS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert foreign.read(str(checkpoint)).tokenizer.encoder["î"] == SYMBOLS.index("î")


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        ("model", "hidden_channels", 192, "hidden_size is 192 by the configuration and 16 by the weights"),
        ("model", "n_heads", 4, "num_attention_heads is 4 by the configuration and 2 by the weights"),
        ("model", "upsample_rates", [8, 8, 4, 2], "upsample_rates make 512 samples of a frame, and the hop is 256"),
        ("data", "filter_length", 2048, "spectrogram_bins is 1025 by the configuration and 513 by the weights"),
        ("model", "resblock", "2", "residual blocks of type 2"),
    ],
)
def test_configuration_of_another_voice_is_named(tmp_path, part, name, value, said) -> None:
    checkpoint = write_original(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        foreign.read(str(checkpoint))


def test_weights_that_do_not_fit_are_named_one_by_one(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    content = torch.load(checkpoint)
    del content["model"]["dec.conv_post.weight"]
    content["model"]["dec.novelty"] = torch.ones(1)
    torch.save(content, checkpoint)
    with pytest.raises(ModelError) as refused:
        foreign.read(str(checkpoint))
    assert "G_100000.pth" in str(refused.value)
    assert "decoder.novelty has no place" in str(refused.value)
    assert "decoder.conv_post.weight is missing" in str(refused.value)


def test_voice_stripped_of_a_network_is_refused_by_the_networks_name(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    content = torch.load(checkpoint)
    content["model"] = {name: t for name, t in content["model"].items() if not name.startswith("enc_q.")}
    torch.save(content, checkpoint)
    with pytest.raises(ModelError, match=r"enc_q\.pre\.weight is missing"):
        foreign.read(str(checkpoint))


def test_what_is_no_voice_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"layer.weight": torch.ones(1)}}, tmp_path / "G_1.pth")
    with pytest.raises(ModelError, match=r"layer\.weight.*not those of a voice of original or coqui or piper"):
        foreign.read(str(tmp_path / "G_1.pth"))
    torch.save([1, 2], tmp_path / "G_2.pth")
    with pytest.raises(ModelError, match="neither model nor state_dict"):
        foreign.read(str(tmp_path / "G_2.pth"))
    with pytest.raises(ModelError, match="no checkpoint of piper"):
        foreign.read(str(tmp_path / "nothing"), "piper")
    write_original(tmp_path / "mms")
    with pytest.raises(ModelError, match="not those of a voice of coqui"):
        foreign.read(str(tmp_path / "mms"), "coqui")


def change_weights(checkpoint: Path, change: Callable[[dict], None]) -> None:
    content = torch.load(checkpoint)
    change(content["model"])
    torch.save(content, checkpoint)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (5, torch.ones(1), "weights by name"),
        ("enc_p.emb.weight", torch.full((40, 16), torch.nan), "in the weights text_encoder.embed_tokens.weight"),
        ("enc_p.emb.weight", torch.ones(40, 16, dtype=torch.complex64), "complex or absent: enc_p.emb.weight"),
        ("enc_p.emb.weight", torch.ones(40, 16).to_sparse(), "complex or absent: enc_p.emb.weight"),
        ("enc_p.emb.weight", torch.ones(40, 16, device="meta"), "complex or absent: enc_p.emb.weight"),
        ("enc_p.emb.weight", torch.ones(40), r"enc_p.emb.weight has shape \(40,\)"),
        ("dec.conv_pre.weight", torch.ones(()), r"dec.conv_pre.weight has shape \(\)"),
        ("enc_p.encoder.attn_layers.0.emb_rel_k", torch.ones(1, 9, 0), r"emb_rel_k has shape \(1, 9, 0\)"),
        ("enc_p.encoder.ffn_layers.0.conv_2.weight", torch.ones(32, 16, 3), r"\(32, 16, 3\), not \(16, 32, 3\)"),
    ],
)
def test_weights_that_are_none_are_named(tmp_path, name, value, said) -> None:
    checkpoint = write_original(tmp_path)
    change_weights(checkpoint, lambda weights: weights.update({name: value}))
    with pytest.raises(ModelError, match=said) as refused:
        foreign.read(str(checkpoint))
    assert "G_100000.pth" in str(refused.value)


def test_weights_of_half_precision_become_whole(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    change_weights(checkpoint, lambda weights: weights.update({name: t.half() for name, t in weights.items()}))
    assert {tensor.dtype for tensor in foreign.read(str(checkpoint)).model.state_dict().values()} == {torch.float32}


def test_voice_without_its_flow_is_refused(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    content = torch.load(checkpoint)
    content["model"] = {name: t for name, t in content["model"].items() if not name.startswith("flow.")}
    torch.save(content, checkpoint)
    with pytest.raises(ModelError, match=r"flow\.flows\.0\.pre\.weight is missing"):
        foreign.read(str(checkpoint))


@pytest.mark.parametrize(
    "ids", [[1], {}, {"a": "b"}, {"a": -5}, {"a": 0, "b": 10**9}, {"a": 0, "b": 0}, {"a": None}], ids=str
)
def test_symbols_without_ids_of_their_own_are_refused(tmp_path: Path, ids: object) -> None:
    checkpoint = write_original(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(ModelError, match=r"vocab\.json holds no ids by symbol.*--vocab"):
        foreign.read(str(checkpoint))
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(ModelError, match=r"vocab\.txt is empty"):
        foreign.read(str(checkpoint))


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps(change(config) or config))


@pytest.mark.parametrize(
    ("write", "change"),
    [
        (write_original, lambda config: [1]),
        (write_original, lambda config: {"model": None, "data": None}),
        (write_original, lambda config: config["model"].update(upsample_rates=None)),
        (write_original, lambda config: config["model"].update(p_dropout="much")),
        (write_original, lambda config: config["model"].update(resblock_dilation_sizes=None)),
        (write_original, lambda config: config["data"].update(sampling_rate="22 kHz")),
        (write_coqui, lambda config: config.update(model_args=None)),
        (write_coqui, lambda config: config.update(audio=None)),
        (write_coqui, lambda config: config["characters"].pop("pad") and None),
        (write_coqui, lambda config: config["model_args"].update(length_scale=0)),
        (write_piper, lambda config: config.update(espeak=None)),
        (write_piper, lambda config: config.update(phoneme_id_map={"_": 0})),
        (write_piper, lambda config: config["inference"].update(length_scale=None)),
    ],
)
def test_configuration_of_other_kinds_of_entries_is_refused_by_name(tmp_path, write, change) -> None:
    checkpoint = write(tmp_path, "single_sdp", Discriminator(SMALL))
    rewrite(tmp_path / "config.json", change)
    with pytest.raises(ModelError, match=r"config\.json.* is not as its trainer writes it"):
        foreign.read(str(checkpoint))


def test_sampling_rate_of_nothing_is_refused(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    rewrite(tmp_path / "config.json", lambda config: config["data"].update(sampling_rate=0))
    with pytest.raises(ModelError, match="the sampling rate is 0"):
        foreign.read(str(checkpoint))


def test_configuration_nested_too_deep_is_refused(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        foreign.read(str(checkpoint))


@pytest.mark.parametrize(
    "weights",
    [
        [1],
        None,
        {5: torch.ones(1)},
        {"discriminators.0.convs.0.weight": torch.ones(())},
        {"discriminators.0.convs.0.weight": torch.ones(0, 1, 1)},
    ],
    ids=["list", "none", "numbers", "scalar", "empty"],
)
def test_discriminators_that_are_none_are_refused(tmp_path: Path, weights: object) -> None:
    checkpoint = write_original(tmp_path)
    torch.save({"model": weights}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other\.pth: These are no discriminators"):
        foreign.read(str(checkpoint), discriminator=str(tmp_path / "other.pth"))


def test_symbols_of_another_coqui_voice_are_counted(tmp_path: Path) -> None:
    checkpoint = write_coqui(tmp_path, "single_sdp", Discriminator(SMALL))
    rewrite(tmp_path / "config.json", lambda config: config["characters"].update(characters="abcdefghij" * 5))
    with pytest.raises(ModelError, match="there are 56 symbols, and its embedding has 40"):
        foreign.read(str(checkpoint))
    change_weights(checkpoint, lambda weights: weights.pop("text_encoder.emb.weight"))
    with pytest.raises(ModelError, match=r"enc_p\.emb\.weight is missing"):
        foreign.read(str(checkpoint))


def test_coquis_symbols_by_vocab_are_those_of_its_configuration(tmp_path: Path) -> None:
    checkpoint = write_coqui(tmp_path, "single_sdp", Discriminator(SMALL))
    unsaid = {"periods_multi_period_discriminator": None}
    rewrite(tmp_path / "config.json", lambda config: config["model_args"].update(unsaid))
    letters = "abcdefghijklmnopqrstuvwxyz"
    (tmp_path / "v.txt").write_text("".join(f"{symbol}\n" for symbol in ["_", *"!.? ", *letters, "<BLNK>"]))
    own, given = foreign.read(str(checkpoint)), foreign.read(str(checkpoint), vocab=tmp_path / "v.txt")
    assert given.tokenizer.encoder == own.tokenizer.encoder
    assert_same_weights(given.model, own.model)


def test_piper_voice_of_letters_makes_no_phonemes(tmp_path: Path) -> None:
    checkpoint = write_piper(tmp_path, "single_sdp", Discriminator(SMALL))
    rewrite(tmp_path / "config.json", lambda config: config.update(phoneme_type="text"))
    voice = foreign.read(str(checkpoint))
    assert not voice.tokenizer.phonemize
    assert not any("phonemes of ku" in note for note in voice.notes)
    rewrite(tmp_path / "config.json", lambda config: config["phoneme_id_map"].update(q=[-9]))
    with pytest.raises(ModelError, match="ids of phoneme_id_map are below 0"):
        foreign.read(str(checkpoint))


def test_names_in_the_made_up_coqui_file_are_those_of_its_source() -> None:
    """Read in TTS/tts/layers/vits and TTS/vocoder/models/hifigan_generator.py."""
    named = {coqui_name(name) for case in CASES for name in golden_weights(case)[0]}
    assert {
        "emb_g.weight", "text_encoder.emb.weight", "text_encoder.encoder.attn_layers.1.emb_rel_k",
        "text_encoder.encoder.norm_layers_2.0.gamma", "text_encoder.proj.bias", "posterior_encoder.enc.cond_layer.bias",
        "flow.flows.3.enc.in_layers.0.weight_g", "flow.flows.0.post.weight", "waveform_decoder.cond_layer.weight",
        "waveform_decoder.ups.3.weight_v", "waveform_decoder.resblocks.11.convs2.2.weight_g",
        "duration_predictor.flows.0.translation", "duration_predictor.flows.0.log_scale",
        "duration_predictor.flows.4.convs.convs_sep.2.weight", "duration_predictor.post_flows.1.proj.weight",
        "duration_predictor.post_convs.norms_1.0.gamma", "duration_predictor.cond.weight",
    } <= named  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_coqui_voice_has_the_originals_weights_and_speaks_the_same(tmp_path: Path, case: str) -> None:
    judges = Discriminator(DiscriminatorShape((2, 5), 16))
    voice = foreign.read(str(write_coqui(tmp_path, case, judges)))
    assert voice.kind == "coqui"
    model, expected = voice.model, expected_model(case)
    assert_same_weights(model, expected, but="text_encoder.embed_tokens.weight")
    assert (model.config.noise_scale, model.config.noise_scale_duration, model.config.speaking_rate) == (0.5, 0.9, 0.8)
    assert voice.discriminator is not None
    assert voice.discriminator.shape == judges.shape
    assert all(torch.equal(t, judges.state_dict()[name]) for name, t in voice.discriminator.state_dict().items())
    # Coqui's ids: _ 0, then ! . ? and the space, then letters from 5 on, and the blank behind them.
    blank, letters = 5 + 26, [5 + "abcdefghijklmnopqrstuvwxyz".index(letter) for letter in "roj"]
    theirs = torch.tensor([[blank, letters[0], blank, letters[1], blank, letters[2], blank]])
    tokens = torch.from_numpy(encode(voice.tokenizer, "Roj"))[None]
    speaker = 2 if case == "multi_sdp" else None
    assert torch.equal(speech(model, tokens, speaker), speech(expected, theirs, speaker))
    assert getattr(model.config, "speakers", None) == (["ada", "bo", "cem", "dan"] if speaker else None)


def test_coqui_voice_that_has_no_place_here_is_refused_with_the_reason(tmp_path: Path) -> None:
    checkpoint = write_coqui(tmp_path, "single_sdp", Discriminator(SMALL))
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["use_d_vector_file"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"use_d_vector_file.*speaker ids"):
        foreign.read(str(checkpoint))
    config["model_args"]["use_d_vector_file"] = False
    config["characters"]["characters_class"] = "my.Own"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"characters_class Own.*--vocab.*<BLNK>"):
        foreign.read(str(checkpoint))


def test_symbols_of_coquis_sorted_characters_come_after_the_special_ones(tmp_path: Path) -> None:
    checkpoint = write_coqui(tmp_path, "single_sdp", Discriminator(SMALL))
    config = json.loads((tmp_path / "config.json").read_text())
    config["characters"] = {
        "characters_class": "TTS.tts.utils.text.characters.Graphemes", "pad": "<PAD>", "eos": "<EOS>", "bos": "<BOS>",
        "blank": "<BLNK>", "characters": "bca", "punctuations": "! ", "is_unique": True, "is_sorted": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = foreign.read(str(checkpoint)).tokenizer
    by_id = sorted(tokenizer.encoder, key=tokenizer.encoder.get)
    assert by_id == ["<BLNK>", "<EOS>", "<BOS>", "<PAD>", "a", "b", "c", "!", " "]


@pytest.mark.parametrize("case", CASES)
def test_piper_voice_has_the_originals_weights(tmp_path: Path, case: str) -> None:
    judges = Discriminator(SMALL)
    voice = foreign.read(str(write_piper(tmp_path, case, judges)))
    assert voice.kind == "piper"
    assert_same_weights(voice.model, expected_model(case))
    assert voice.discriminator is not None
    assert voice.discriminator.shape == SMALL
    config = voice.model.config
    assert (config.noise_scale, config.noise_scale_duration, config.speaking_rate) == (0.6, 0.7, 1.25)
    assert getattr(config, "speakers", None) == (["ada", "bo", "cem", "dan"] if case == "multi_sdp" else None)
    assert [voice.tokenizer.encoder[symbol] for symbol in "_^$ ab"] == [0, 1, 2, 3, 4, 5]
    assert (voice.tokenizer.phonemize, voice.tokenizer.language) == (True, "ku")
    assert any("phonemes of ku" in note for note in voice.notes)
    assert any("transformers' own tokenizer would make American English ones" in note for note in voice.notes)
    assert any("aɪ" in note for note in voice.notes)


def test_piper_voice_of_medium_quality_is_refused_with_the_reason(tmp_path: Path) -> None:
    checkpoint = write_piper(tmp_path, "single_sdp", Discriminator(SMALL), resblock="2")
    with pytest.raises(ModelError, match=r"residual blocks of type 2 .*high quality"):
        foreign.read(str(checkpoint))
