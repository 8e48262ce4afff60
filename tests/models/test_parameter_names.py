"""Translation of parameter names between the original and this package."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import VitsConfig, VitsModel

from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.diagnostics import golden
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.parameter_names import (
    discriminator_name,
    discriminator_shape,
    from_original_discriminator,
    from_original_generator,
    generator_name,
    has_stochastic_durations,
    match_state_dict,
    original_generator_name,
    split_weight,
    to_original_discriminator,
    to_original_generator,
)
from vits_trainer.models.pretrained import with_weight_norm
from vits_trainer.utils.errors import ModelError

GOLDEN = Path(__file__).parents[1] / "golden"


def full_size(**settings: object) -> VitsModel:
    with torch.device("meta"):
        return with_weight_norm(VitsModel(VitsConfig(**settings)))


def original_names(case: str, layers: int = 6) -> list[str]:
    """Returns the original's names at full size: those of the golden case, with ``layers`` text encoder layers."""
    names = json.loads((GOLDEN / f"{case}.json").read_text())["generator_shapes"]
    more = [
        re.sub(r"(enc_p\.encoder\.\w+)\.1\.", rf"\1.{layer}.", name)
        for layer in range(2, layers)
        for name in names
        if re.match(r"enc_p\.encoder\.\w+\.1\.", name)
    ]
    return [*names, *more]


def plain_duration_names(names: list[str], several_speakers: bool) -> list[str]:
    """Replaces the names of the stochastic duration predictor by those of the original's ``DurationPredictor``."""
    layers = ["conv_1.weight", "conv_1.bias", "norm_1.gamma", "norm_1.beta", "conv_2.weight", "conv_2.bias"]
    layers += ["norm_2.gamma", "norm_2.beta", "proj.weight", "proj.bias"]
    layers += ["cond.weight", "cond.bias"] if several_speakers else []
    return [name for name in names if not name.startswith("dp.")] + [f"dp.{layer}" for layer in layers]


@pytest.mark.parametrize("plain", [False, True], ids=["stochastic", "plain"])
@pytest.mark.parametrize("case", ["single_sdp", "multi_sdp"])
def test_full_size_generator_names_map_one_to_one(case, plain):
    several = case == "multi_sdp"
    speakers = {"num_speakers": 109, "speaker_embedding_size": 256} if several else {}
    model = full_size(use_stochastic_duration_prediction=not plain, **speakers)
    originals = original_names(case)
    if plain:
        originals = plain_duration_names(originals, several)
    assert has_stochastic_durations(originals) is not plain
    expected = [generator_name(name, stochastic_durations=not plain) for name in originals]
    assert sorted(expected) == sorted(model.state_dict())


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ("enc_p.encoder.attn_layers.3.conv_q.weight", "text_encoder.encoder.layers.3.attention.q_proj.weight"),
        ("enc_p.encoder.attn_layers.0.emb_rel_v", "text_encoder.encoder.layers.0.attention.emb_rel_v"),
        ("enc_p.encoder.norm_layers_2.5.gamma", "text_encoder.encoder.layers.5.final_layer_norm.weight"),
        ("flow.flows.4.pre.weight", "flow.flows.2.conv_pre.weight"),
        ("flow.flows.6.enc.in_layers.1.weight_g", "flow.flows.3.wavenet.in_layers.1.parametrizations.weight.original0"),
        ("dp.flows.0.m", "duration_predictor.flows.0.translate"),
        ("dp.flows.7.proj.bias", "duration_predictor.flows.4.conv_proj.bias"),
        ("dp.post_flows.1.convs.norms_1.0.beta", "duration_predictor.post_flows.1.conv_dds.norms_1.0.bias"),
        ("dp.post_pre.bias", "duration_predictor.post_conv_pre.bias"),
        ("dec.ups.1.weight_v", "decoder.upsampler.1.parametrizations.weight.original1"),
    ],
)
def test_generator_name(original, expected):
    assert generator_name(original) == expected


@pytest.mark.parametrize("plain", [False, True], ids=["stochastic", "plain"])
@pytest.mark.parametrize("case", ["single_sdp", "multi_sdp"])
def test_names_are_mapped_back_to_the_original(case, plain):
    originals = original_names(case)
    if plain:
        originals = plain_duration_names(originals, case == "multi_sdp")
    assert [original_generator_name(generator_name(name, not plain)) for name in originals] == originals


def golden_model(case):
    content = json.loads((GOLDEN / f"{case}.json").read_text())
    return with_weight_norm(VitsModel(golden.vits_config(content["config"]))), content["generator_shapes"]


@pytest.mark.parametrize("case", ["single_sdp", "multi_sdp"])
def test_original_weights_round_trip_exactly(case):
    model, shapes = golden_model(case)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    model.load_state_dict(from_original_generator(weights, model.state_dict()))
    back = to_original_generator(model.state_dict())
    assert {name: list(tensor.shape) for name, tensor in back.items()} == shapes
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


def test_weight_norm_is_split_or_folded_to_match_the_network():
    folded = nn.Sequential(nn.ConvTranspose1d(4, 6, 3))
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(4, 6, 3)))
    inputs = torch.randn(1, 4, 9)
    expected = F.conv_transpose1d(inputs, folded[0].weight, folded[0].bias)
    normed.load_state_dict(match_state_dict(folded.state_dict(), normed.state_dict(), "layer"))
    torch.testing.assert_close(normed(inputs), expected)
    again = nn.Sequential(nn.ConvTranspose1d(4, 6, 3))
    again.load_state_dict(match_state_dict(normed.state_dict(), again.state_dict(), "layer"))
    torch.testing.assert_close(again(inputs), expected)


def test_original_convolutions_are_converted_to_linear_layers():
    shapes = {"text_encoder.encoder.layers.0.attention.q_proj.weight": torch.empty(2, 3)}
    weight = torch.arange(6.0).reshape(2, 3, 1)
    converted = from_original_generator({"enc_p.encoder.attn_layers.0.conv_q.weight": weight}, shapes)
    assert converted["text_encoder.encoder.layers.0.attention.q_proj.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_deterministic_duration_predictor_is_detected_by_names():
    shapes = {"duration_predictor.proj.bias": torch.empty(1)}
    assert from_original_generator({"dp.proj.bias": torch.ones(1)}, shapes).keys() == shapes.keys()


def test_each_generator_mismatch_is_listed():
    shapes = {"text_encoder.embed_tokens.weight": torch.empty(4, 2), "decoder.conv_pre.bias": torch.empty(3)}
    weights = {"enc_p.emb.weight": torch.empty(5, 2), "dec.cond.bias": torch.empty(3)}
    with pytest.raises(ModelError) as raised:
        from_original_generator(weights, shapes)
    message = str(raised.value)
    assert "do not match the generator" in message
    assert "decoder.cond.bias is unexpected" in message
    assert "decoder.conv_pre.bias is missing" in message
    assert "text_encoder.embed_tokens.weight has shape (5, 2), expected (4, 2)" in message


def test_discriminator_weights_round_trip_under_original_names():
    state = Discriminator(DiscriminatorShape((2, 3), 8)).state_dict()
    originals = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }
    assert all(discriminator_name(name) in state for name in originals)
    assert not originals.keys() & {name for name in state if "parametrizations" in name}
    converted = from_original_discriminator(originals, state)
    assert converted.keys() == state.keys()
    assert to_original_discriminator(state).keys() == originals.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)


def test_discriminator_of_another_size_is_rejected():
    weights = Discriminator(DiscriminatorShape((2,), 8)).state_dict()
    with pytest.raises(ModelError, match=r"discriminators\.2\.convs\.0\.bias is missing"):
        from_original_discriminator(weights, Discriminator(DiscriminatorShape((2, 3), 8)).state_dict())


def test_discriminator_sizes_are_inferred_from_shapes():
    shapes = json.loads((GOLDEN / "single_sdp.json").read_text())["discriminator_shapes"]
    assert discriminator_shape(shapes) == DiscriminatorShape()
    small = Discriminator(DiscriminatorShape((2, 3), 8)).state_dict()
    assert discriminator_shape({name: tensor.shape for name, tensor in to_original_discriminator(small).items()}) == (
        DiscriminatorShape((2, 3), 8)
    )


def test_other_weights_are_rejected_as_discriminators():
    with pytest.raises(ModelError, match=r"not VITS discriminators .*enc_p\.emb"):
        discriminator_shape({"enc_p.emb.weight": (3, 4)})


def test_zero_rows_stay_zero_with_weight_norm() -> None:
    weight = torch.randn(4, 3, 2)
    weight[1] = 0
    norm, direction = split_weight(weight)
    again = torch._weight_norm(direction, norm, 0)
    torch.testing.assert_close(again, weight)
    assert not again[1].any()
    assert norm.shape == (4, 1, 1)
