"""Import of voices of other programs: layout detection, sizes and mismatches."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.foreign_checkpoints import (
    SMALL,
    SYMBOLS,
    change_weights,
    rewrite,
    write_coqui,
    write_original,
    write_piper,
)
from vits_trainer.models.conversion import importer
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.utils.errors import ModelError

pytestmark = pytest.mark.slow


def test_missing_symbols_are_reported_with_the_remedy(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    (tmp_path / "vocab.txt").rename(tmp_path / "elsewhere.txt")
    with pytest.raises(ModelError, match=r"G_100000\.pth has 40 symbols.*--vocab"):
        importer.import_voice(str(checkpoint))
    assert len(importer.import_voice(str(checkpoint), vocab=tmp_path / "elsewhere.txt").tokenizer) == 40
    config = json.loads((tmp_path / "config.json").read_text()) | {"symbols": SYMBOLS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert importer.import_voice(str(checkpoint)).tokenizer.encoder["î"] == SYMBOLS.index("î")


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("model", "hidden_channels", 192, "hidden_size is 192 in the configuration but 16 in the weights"),
        ("model", "n_heads", 4, "num_attention_heads is 4 in the configuration but 2 in the weights"),
        ("model", "upsample_rates", [8, 8, 4, 2], "upsample_rates give 512 samples per frame, but the hop is 256"),
        ("model", "resblock", "2", "resblock_type is 2 in the configuration but 1 in the weights"),
        ("data", "filter_length", 2048, "spectrogram_bins is 1025 in the configuration but 513 in the weights"),
    ],
)
def test_mismatched_configuration_values_are_reported(tmp_path, part, name, value, message) -> None:
    checkpoint = write_original(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part][name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        importer.import_voice(str(checkpoint))


def test_mismatched_weights_are_listed(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    content = torch.load(checkpoint)
    del content["model"]["dec.conv_post.weight"]
    content["model"]["dec.novelty"] = torch.ones(1)
    torch.save(content, checkpoint)
    with pytest.raises(ModelError) as raised:
        importer.import_voice(str(checkpoint))
    assert "G_100000.pth" in str(raised.value)
    assert "decoder.novelty is unexpected" in str(raised.value)
    assert "decoder.conv_post.weight is missing" in str(raised.value)


def test_voice_without_posterior_encoder_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    content = torch.load(checkpoint)
    content["model"] = {name: t for name, t in content["model"].items() if not name.startswith("enc_q.")}
    torch.save(content, checkpoint)
    with pytest.raises(ModelError, match=r"enc_q\.pre\.weight is missing"):
        importer.import_voice(str(checkpoint))


def test_other_checkpoints_are_rejected(tmp_path: Path) -> None:
    torch.save({"model": {"layer.weight": torch.ones(1)}}, tmp_path / "G_1.pth")
    with pytest.raises(ModelError, match=r"layer\.weight.*not those of a voice in original or coqui or piper layout"):
        importer.import_voice(str(tmp_path / "G_1.pth"))
    torch.save([1, 2], tmp_path / "G_2.pth")
    with pytest.raises(ModelError, match="no weights by name under model or state_dict"):
        importer.import_voice(str(tmp_path / "G_2.pth"))
    with pytest.raises(ModelError, match="no piper checkpoint found"):
        importer.import_voice(str(tmp_path / "nothing"), "piper")
    write_original(tmp_path / "mms")
    with pytest.raises(ModelError, match="not those of a voice in coqui layout"):
        importer.import_voice(str(tmp_path / "mms"), "coqui")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (5, torch.ones(1), "weights by name"),
        ("enc_p.emb.weight", torch.full((40, 16), torch.nan), "in the weights text_encoder.embed_tokens.weight"),
        ("enc_p.emb.weight", torch.ones(40, 16, dtype=torch.complex64), "complex or without data: enc_p.emb.weight"),
        ("enc_p.emb.weight", torch.ones(40, 16).to_sparse(), "complex or without data: enc_p.emb.weight"),
        ("enc_p.emb.weight", torch.ones(40, 16, device="meta"), "complex or without data: enc_p.emb.weight"),
        ("enc_p.emb.weight", torch.ones(40), r"enc_p.emb.weight has shape \(40,\)"),
        ("dec.conv_pre.weight", torch.ones(()), r"dec.conv_pre.weight has shape \(\)"),
        ("enc_p.encoder.attn_layers.0.emb_rel_k", torch.ones(1, 9, 0), r"emb_rel_k has shape \(1, 9, 0\)"),
        ("enc_p.encoder.ffn_layers.0.conv_2.weight", torch.ones(32, 16, 3), r"\(32, 16, 3\), expected \(16, 32, 3\)"),
    ],
)
def test_unsupported_tensors_are_listed(tmp_path, name, value, message) -> None:
    checkpoint = write_original(tmp_path)
    change_weights(checkpoint, lambda weights: weights.update({name: value}))
    with pytest.raises(ModelError, match=message) as raised:
        importer.import_voice(str(checkpoint))
    assert "G_100000.pth" in str(raised.value)


def test_half_precision_weights_are_converted_to_float32(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    change_weights(checkpoint, lambda weights: weights.update({name: t.half() for name, t in weights.items()}))
    assert {tensor.dtype for tensor in importer.import_voice(str(checkpoint)).model.state_dict().values()} == {
        torch.float32
    }


def test_voice_without_flow_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    content = torch.load(checkpoint)
    content["model"] = {name: t for name, t in content["model"].items() if not name.startswith("flow.")}
    torch.save(content, checkpoint)
    with pytest.raises(ModelError, match=r"flow\.flows\.0\.pre\.weight is missing"):
        importer.import_voice(str(checkpoint))


@pytest.mark.parametrize(
    "ids", [[1], {}, {"a": "b"}, {"a": -5}, {"a": 0, "b": 10**9}, {"a": 0, "b": 0}, {"a": None}], ids=str
)
def test_symbols_without_unique_ids_are_rejected(tmp_path: Path, ids: object) -> None:
    checkpoint = write_original(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(ModelError, match=r"vocab\.json: .*(unique ids|expected ).*--vocab"):
        importer.import_voice(str(checkpoint))
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(ModelError, match=r"vocab\.txt is empty"):
        importer.import_voice(str(checkpoint))


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
def test_configuration_values_of_wrong_types_are_rejected(tmp_path, write, change) -> None:
    checkpoint = write(tmp_path, "single_sdp", Discriminator(SMALL))
    rewrite(tmp_path / "config.json", change)
    with pytest.raises(ModelError, match=r"config\.json.*( has unexpected configuration values|: expected )"):
        importer.import_voice(str(checkpoint))


def test_sampling_rate_of_zero_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    rewrite(tmp_path / "config.json", lambda config: config["data"].update(sampling_rate=0))
    with pytest.raises(ModelError, match="the sampling rate is 0"):
        importer.import_voice(str(checkpoint))


def test_too_deeply_nested_configuration_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_original(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"config\.json: (expected object|is nested)"):
        importer.import_voice(str(checkpoint))


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
def test_invalid_discriminators_are_rejected(tmp_path: Path, weights: object) -> None:
    checkpoint = write_original(tmp_path)
    torch.save({"model": weights}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other\.pth: These are not VITS discriminators"):
        importer.import_voice(str(checkpoint), discriminator=str(tmp_path / "other.pth"))
