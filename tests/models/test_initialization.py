"""VITS initialisation of new voices, and freezing of modules."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.models import SMALL, TOKENIZER, new_voice, speech
from vits_trainer.config.options import MODULES, PARTS
from vits_trainer.models.initialization import freeze
from vits_trainer.models.pretrained import audio_spec
from vits_trainer.utils.errors import ConfigError


def test_new_couplings_and_splines_start_as_identity():
    model = new_voice()
    predictor = model.duration_predictor
    last = [coupling.conv_post for coupling in model.flow.flows]
    last += [spline.conv_proj for spline in (*predictor.flows[1:], *predictor.post_flows[1:])]
    assert len(last) == 2 + 2 + 2
    assert all((p == 0).all() for layer in last for p in layer.parameters())


def test_new_decoder_weights_are_those_that_the_original_trains_from():
    """Weights of (in, out, kernel) and (out, in, kernel) convolutions under the original's constructor.

    It calls ``normal_(0, 0.01)`` on the weights that weight norm computes, which the next forward pass overwrites.
    """
    decoder = new_voice().decoder
    for mine in (*decoder.upsampler, *(m for m in decoder.resblocks.modules() if isinstance(m, nn.Conv1d))):
        settings = (mine.in_channels, mine.out_channels, mine.kernel_size[0], mine.stride[0], mine.padding[0])
        kind = nn.ConvTranspose1d if isinstance(mine, nn.ConvTranspose1d) else nn.Conv1d
        original = torch.nn.utils.weight_norm(kind(*settings))
        original.weight.data.normal_(0, 0.01)
        original(torch.zeros(1, mine.in_channels, 32))
        if mine.weight.numel() > 300:
            assert mine.weight.std().item() == pytest.approx(original.weight.std().item(), rel=0.15)


def test_other_new_weights_have_pytorch_defaults():
    model = new_voice()
    checked = 0
    for name, module in model.named_modules():
        zero = "flow" in name and name.endswith(("conv_post", "conv_proj"))
        if zero or name.endswith(("q_proj", "k_proj", "v_proj")):
            continue
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            bound = module.weight[0].numel() ** -0.5
            greatest = module.weight.abs().max().item()
            assert greatest <= bound * 1.0001, name
            if module.weight.numel() > 300:
                assert greatest > 0.95 * bound, name
                assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15), name
            if module.bias is not None:
                assert module.bias.abs().max() <= bound * 1.0001, name
                assert module.bias.abs().max() > 0, name
            checked += 1
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
    assert checked > 30


def test_new_embeddings_and_attention_match_vits():
    model = new_voice("a", "b", "c")
    assert model.text_encoder.embed_tokens.weight.std().item() == pytest.approx(32**-0.5, rel=0.2)
    assert model.embed_speaker.weight.std().item() == pytest.approx(1, rel=0.1)
    attention = model.text_encoder.encoder.layers[0].attention
    assert attention.emb_rel_k.std().item() == pytest.approx(16**-0.5, rel=0.2)


def test_new_attention_projections_have_xavier_initialisation():
    attention = new_voice().text_encoder.encoder.layers[0].attention
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert projection.weight.abs().max().item() == pytest.approx((6 / 64) ** 0.5, rel=0.05)


def test_new_voice_has_the_vocabulary_of_the_tokenizer_and_the_hop_of_the_architecture():
    model = new_voice()
    assert model.text_encoder.embed_tokens.num_embeddings == len(TOKENIZER)
    spec = audio_spec(model.config)
    assert (spec.sampling_rate, spec.n_fft, spec.window, spec.hop, spec.mel_bands) == (16000, 1024, 1024, 256, 80)


def test_deterministic_duration_predictor_can_be_initialised():
    model = new_voice(architecture=replace(SMALL, use_stochastic_duration_prediction=False))
    assert speech(model).shape[0] == 1


def test_frozen_multi_speaker_voice_still_trains_speaker_embeddings() -> None:
    model = new_voice("ann", "bo")
    freeze(model, PARTS)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["embed_speaker.weight"]
    with pytest.raises(ConfigError, match="leaves no trainable parameters"):
        freeze(new_voice(), PARTS)


def test_freezable_parts_cover_all_modules() -> None:
    names = {name.split(".")[0] for name, _ in new_voice().named_parameters()}
    assert names == set(MODULES)


def test_what_synthesis_does_not_use_of_the_durations_can_be_trained_alone() -> None:
    """Any change of the trained half leaves the speech as it is; a change of the frozen one does not."""
    model = new_voice()
    with torch.no_grad():
        for parameter in model.duration_predictor.parameters():  # zero-initialized layers hide changes
            parameter.add_(0.1 * torch.randn_like(parameter))
    before = speech(model)
    freeze(model, ["duration_synthesis"])
    frozen = [p for p in model.duration_predictor.parameters() if not p.requires_grad]
    trained = [p for p in model.duration_predictor.parameters() if p.requires_grad]
    assert min(len(frozen), len(trained)) > 20
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(speech(model), before)
    with torch.no_grad():
        for parameter in frozen:
            parameter.add_(0.01 * torch.randn_like(parameter))
    assert not torch.equal(speech(model), before)
