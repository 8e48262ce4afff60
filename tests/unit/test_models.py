"""Loading, starting and giving back voices."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, VitsConfig, VitsModel, pipeline

from vits_trainer.architecture import Architecture, DiscriminatorShape
from vits_trainer.config import PARTS
from vits_trainer.discriminator import Discriminator
from vits_trainer.errors import ConfigError, ModelError
from vits_trainer.models import (
    DISCRIMINATOR_FILE,
    LONGEST_TOKEN_S,
    audio_spec,
    discriminator_for,
    export,
    freeze,
    has_discriminator,
    load_discriminator,
    load_model,
    new_model,
    read_discriminator,
    save_discriminator,
    speaker_ids,
    unhurried,
)
from vits_trainer.text import build_tokenizer

SMALL = Architecture(
    hidden_size=32,
    num_hidden_layers=2,
    ffn_dim=64,
    posterior_encoder_num_wavenet_layers=3,
    prior_encoder_num_flows=2,
    prior_encoder_num_wavenet_layers=2,
    duration_predictor_num_flows=2,
    upsample_initial_channel=64,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
)
TOKENIZER = build_tokenizer(["silav dinya"])


def new_voice(*speakers: str, architecture: Architecture = SMALL) -> VitsModel:
    torch.manual_seed(0)
    return new_model(architecture, TOKENIZER, list(speakers))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A voice as transformers makes and saves it: decoder folded, layerdrop 0.1."""
    torch.manual_seed(0)
    config = VitsConfig(vocab_size=len(TOKENIZER), hidden_size=16, flow_size=16, num_hidden_layers=2, ffn_dim=32,
                        upsample_initial_channel=32, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
                        posterior_encoder_num_wavenet_layers=2, prior_encoder_num_flows=2)  # fmt: skip
    folder = tmp_path_factory.mktemp("published") / "voice"
    VitsModel(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    assert config.layerdrop == 0.1
    return folder


def speech(model: VitsModel) -> torch.Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        return model.eval()(**TOKENIZER("silav dinya", return_tensors="pt")).waveform


def decoder_weight_norms(names) -> list[str]:
    return [name for name in names if name.startswith("decoder.") and ("parametrizations" in name or "weight_" in name)]


def test_trap_2_layerdrop_is_zero_unless_asked_for(published):
    assert load_model(str(published)).text_encoder.encoder.layerdrop == 0
    assert load_model(str(published), layerdrop=0.3).text_encoder.encoder.layerdrop == 0.3
    assert new_voice().text_encoder.encoder.layerdrop == 0
    assert new_model(SMALL, TOKENIZER, [], layerdrop=0.2).text_encoder.encoder.layerdrop == 0.2


def test_trap_3_loaded_voice_is_in_eval_mode(published):
    model = load_model(str(published))
    assert not model.training
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Dropout))
    assert not any(part.training for part in model.children())


def test_trap_5_decoder_gets_its_weight_norm_and_speaks_as_before(published):
    as_published, trainable = VitsModel.from_pretrained(published), load_model(str(published))
    assert decoder_weight_norms(as_published.state_dict()) == []
    assert len(decoder_weight_norms(trainable.state_dict())) == 2 * (4 + 4 * 4)  # upsampling, residual blocks
    torch.testing.assert_close(speech(trainable), speech(as_published), atol=1e-5, rtol=1e-4)


def test_trap_5_flow_has_weight_norm_in_its_wavenets_alone(published):
    names = {name for name in load_model(str(published)).state_dict() if name.startswith("flow.")}
    assert any("wavenet.in_layers.0.parametrizations" in name for name in names)
    assert not [name for name in names if ("conv_pre" in name or "conv_post" in name) and "parametrizations" in name]


def test_trap_5_export_gives_back_what_transformers_published(published, tmp_path):
    export(load_model(str(published)), TOKENIZER, None, tmp_path / "out")
    again, report = VitsModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = VitsModel.from_pretrained(published).state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
    assert decoder_weight_norms(load_file(tmp_path / "out" / "model.safetensors")) == []


def test_export_leaves_the_trained_voice_as_it_is(tmp_path):
    model = new_voice().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model, TOKENIZER, None, tmp_path / "out")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_trained_voice_goes_on_after_its_export(tmp_path):
    model = new_voice()
    before = speech(model)
    export(model, TOKENIZER, None, tmp_path / "out")
    assert torch.equal(speech(model), before)


def test_voice_under_the_old_names_of_weight_norm_is_loaded_and_written_under_the_new(published, tmp_path):
    old = tmp_path / "old"
    TOKENIZER.save_pretrained(old)
    (old / "config.json").write_text((published / "config.json").read_text())
    weights = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(published / "model.safetensors").items()
    }
    assert any(name.endswith("weight_g") for name in weights)
    save_file(weights, old / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(str(old))
    expected = load_model(str(published)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    export(loaded, TOKENIZER, None, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in written if name.endswith(("weight_g", "weight_v"))]


def test_pipeline_speaks_from_the_exported_folder(tmp_path):
    model = new_voice()
    before = speech(model).flatten()
    export(model, TOKENIZER, Discriminator(DiscriminatorShape((2,), 8)), tmp_path / "out")
    speaker = pipeline("text-to-speech", model=str(tmp_path / "out"))
    torch.manual_seed(5)
    spoken = speaker("silav dinya")
    assert spoken["sampling_rate"] == 16000
    torch.testing.assert_close(torch.from_numpy(spoken["audio"]).flatten(), before, atol=1e-5, rtol=1e-3)


def test_export_keeps_the_voice_that_was_there_and_leaves_nothing_else_beside_it(tmp_path):
    export(new_voice(), TOKENIZER, None, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    before = (tmp_path / "out/model.safetensors").read_bytes()
    (tmp_path / "out/notes").write_text("mine")
    other = new_voice()
    nn.init.ones_(other.text_encoder.project.bias)
    export(other, TOKENIZER, None, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out_versions"]
    assert [path.name for path in (tmp_path / "out_versions").iterdir()] == ["0"]
    assert (tmp_path / "out_versions/0/model.safetensors").read_bytes() == before
    assert (tmp_path / "out/notes").read_text() == "mine"


def test_export_takes_no_place_of_something_else(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("precious")
    with pytest.raises(ConfigError, match="holds mine, and is no voice"):
        export(new_voice(), TOKENIZER, None, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_export_that_would_not_be_what_was_trained_is_refused_and_the_old_voice_kept(tmp_path):
    export(new_voice(), TOKENIZER, None, tmp_path / "out")
    broken = new_voice()
    nn.init.constant_(broken.text_encoder.project.bias, math.nan)  # equals not even itself
    with pytest.raises(ModelError, match=r"text_encoder\.project\.bias"):
        export(broken, TOKENIZER, None, tmp_path / "out")
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert kept["text_encoder.project.bias"].isfinite().all()


def test_trap_5_from_scratch_couplings_and_splines_begin_as_identity():
    model = new_voice()
    predictor = model.duration_predictor
    last = [coupling.conv_post for coupling in model.flow.flows]
    last += [spline.conv_proj for spline in (*predictor.flows[1:], *predictor.post_flows[1:])]
    assert len(last) == 2 + 2 + 2
    assert all((p == 0).all() for layer in last for p in layer.parameters())


def test_trap_5_from_scratch_decoder_is_normal_with_a_hundredth():
    decoder = new_voice().decoder
    blocks = [m for m in decoder.resblocks.modules() if isinstance(m, nn.Conv1d)]
    for layer in (*decoder.upsampler, *blocks):
        if layer.weight.numel() > 500:
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.2)
            assert layer.weight.abs().max() > 0.02  # no uniform distribution
    everything = torch.cat([layer.weight.flatten() for layer in (*decoder.upsampler, *blocks)])
    assert everything.std().item() == pytest.approx(0.01, rel=0.03)


def test_trap_5_from_scratch_all_else_is_pytorchs_default():
    model = new_voice()
    checked = 0
    for name, module in model.named_modules():
        normal = name.startswith(("decoder.upsampler", "decoder.resblocks"))
        zero = "flow" in name and name.endswith(("conv_post", "conv_proj"))
        if normal or zero or name.endswith(("q_proj", "k_proj", "v_proj")):
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


def test_trap_5_from_scratch_embeddings_and_attention_are_vitss():
    model = new_voice("a", "b", "c")
    assert model.text_encoder.embed_tokens.weight.std().item() == pytest.approx(32**-0.5, rel=0.2)
    assert model.embed_speaker.weight.std().item() == pytest.approx(1, rel=0.1)
    attention = model.text_encoder.encoder.layers[0].attention
    assert attention.emb_rel_k.std().item() == pytest.approx(16**-0.5, rel=0.2)


def test_trap_5_from_scratch_projections_of_attention_are_xaviers():
    attention = new_voice().text_encoder.encoder.layers[0].attention
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert projection.weight.abs().max().item() == pytest.approx((6 / 64) ** 0.5, rel=0.05)


def test_from_scratch_voice_has_the_tokenizers_vocabulary_and_the_hops_framing():
    model = new_voice()
    assert model.text_encoder.embed_tokens.num_embeddings == len(TOKENIZER)
    spec = audio_spec(model.config)
    assert (spec.sampling_rate, spec.n_fft, spec.window, spec.hop, spec.mel_bands) == (16000, 1024, 1024, 256, 80)


def test_plain_duration_predictor_can_be_started_too():
    model = new_voice(architecture=replace(SMALL, use_stochastic_duration_prediction=False))
    assert speech(model).shape[0] == 1


def test_trap_8_speakers_are_kept_with_the_voice_in_their_order(tmp_path):
    export(new_voice("ava", "bo", "cem"), TOKENIZER, None, tmp_path / "out")
    config = VitsConfig.from_pretrained(tmp_path / "out")
    assert config.num_speakers == 3
    assert config.speakers == ["ava", "bo", "cem"]
    assert speaker_ids(config, ["bo", "cem"]) == {"ava": 0, "bo": 1, "cem": 2}
    assert load_model(str(tmp_path / "out")).config.speakers == ["ava", "bo", "cem"]


def test_trap_8_speaker_that_the_voice_does_not_know_is_refused():
    config = new_voice("ava", "bo").config
    with pytest.raises(ModelError, match="does not know cem"):
        speaker_ids(config, ["ava", "cem"])


def test_one_speaker_needs_no_ids():
    config = new_voice("ava").config
    assert (config.num_speakers, config.speaker_embedding_size) == (1, 0)
    assert speaker_ids(config, ["ava"]) is None


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no voice could be loaded from there .*Give a local folder"):
        load_model(str(tmp_path / "absent"))


def test_model_of_another_kind_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a bert model, not a VITS voice"):
        load_model(str(tmp_path))


def copied(published, folder):
    folder.mkdir()
    for path in published.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("kept", [0, 100, 20000], ids=["empty", "in the header", "in the weights"])
def test_damaged_weights_are_refused(published, tmp_path, kept):
    weights = copied(published, tmp_path / "voice") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ModelError, match="no voice could be loaded"):
        load_model(str(tmp_path / "voice"))




@pytest.mark.parametrize(
    "change",
    [
        "missing",
        "unexpected",
        pytest.param("mismatched"),
    ],
)
def test_weights_that_do_not_fit_are_named(published, tmp_path, change):
    path = copied(published, tmp_path / "voice") / "model.safetensors"
    weights, name = load_file(path), "text_encoder.embed_tokens.weight"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        name = "text_encoder.novelty.weight"
        weights[name] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(3, 16)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_model(str(tmp_path / "voice"))


def test_damaged_configuration_is_refused(published, tmp_path):
    (copied(published, tmp_path / "voice") / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match="no voice could be loaded"):
        load_model(str(tmp_path / "voice"))


def test_discriminators_are_loaded_with_the_shape_they_were_saved_with(tmp_path):
    saved = Discriminator(DiscriminatorShape((3, 7), 8))
    save_discriminator(saved, tmp_path / "d.safetensors")
    loaded = load_discriminator(tmp_path / "d.safetensors")
    assert loaded.shape == DiscriminatorShape((3, 7), 8)
    assert [d.period for d in loaded.discriminators[1:]] == [3, 7]
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_discriminators_beside_a_voice_are_taken_and_fresh_ones_elsewhere(tmp_path):
    save_discriminator(Discriminator(DiscriminatorShape((3,), 8)), tmp_path / DISCRIMINATOR_FILE)
    fresh = DiscriminatorShape((2,), 16)
    assert discriminator_for(str(tmp_path), fresh).shape == DiscriminatorShape((3,), 8)
    assert discriminator_for(None, fresh).shape == fresh
    assert discriminator_for(str(tmp_path / "absent"), fresh).shape == fresh


def legacy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weight norm under the names that torch gave it before its parametrizations."""
    return {
        name.replace(".parametrizations.weight.original0", ".weight_g").replace(
            ".parametrizations.weight.original1", ".weight_v"
        ): tensor
        for name, tensor in state.items()
    }


def same_judgement(one: Discriminator, other: Discriminator) -> None:
    waveform = torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(one(waveform).scores, other(waveform).scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_discriminators_of_the_original_are_read_from_its_pickle(tmp_path):
    judges = Discriminator(DiscriminatorShape((2, 3), 16))
    content = {"model": legacy(judges.state_dict()), "iteration": 100000, "optimizer": {}, "learning_rate": 2e-4}
    torch.save(content, tmp_path / "D_100000.pth")
    read = read_discriminator(str(tmp_path / "D_100000.pth"))
    assert all(torch.equal(tensor, judges.state_dict()[name]) for name, tensor in read.state_dict().items())
    given = discriminator_for(None, DiscriminatorShape((5,), 16), str(tmp_path / "D_100000.pth"))
    assert given.shape == DiscriminatorShape((2, 3), 16)


def as_finetune_hf_vits(folder, judges: Discriminator, published, weight_norm_everywhere: bool):
    """One file with both networks: discriminators folded, their last layer under its name there; or all normed."""
    voice = copied(published, folder)
    weights = load_file(voice / "model.safetensors")
    inside = legacy(judges.state_dict())
    if weight_norm_everywhere:
        model = load_model(str(published))
        for coupling in model.flow.flows:
            nn.utils.parametrizations.weight_norm(coupling.conv_pre)
            nn.utils.parametrizations.weight_norm(coupling.conv_post)
        weights = legacy({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()})
    else:
        for name in [name for name in inside if name.endswith("weight_g")]:
            direction = inside.pop(name.replace("weight_g", "weight_v"))
            norm = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
            inside[name.removesuffix("_g")] = inside.pop(name) * direction / norm
    weights |= {f"discriminator.{name.replace('conv_post', 'final_conv')}": w for name, w in inside.items()}
    save_file({name: w.contiguous() for name, w in weights.items()}, voice / "model.safetensors", {"format": "pt"})
    return voice


@pytest.mark.parametrize("normed", [False, True], ids=["as it publishes them", "weight norm everywhere"])
def test_checkpoint_of_finetune_hf_vits_gives_voice_and_discriminators(published, tmp_path, normed):
    judges = Discriminator(DiscriminatorShape((2, 3, 5), 16))
    voice = as_finetune_hf_vits(tmp_path / "theirs", judges, published, normed)
    assert has_discriminator(str(voice))
    assert not has_discriminator(str(published))
    same_judgement(discriminator_for(str(voice), DiscriminatorShape()), judges)
    model = load_model(str(voice))
    torch.testing.assert_close(speech(model), speech(load_model(str(published))), atol=1e-5, rtol=1e-4)
    assert not [name for name in model.state_dict() if "conv_pre.param" in name or "conv_post.param" in name]


def test_what_does_not_fit_in_a_checkpoint_of_finetune_hf_vits_is_named(published, tmp_path):
    voice = as_finetune_hf_vits(tmp_path / "theirs", Discriminator(DiscriminatorShape((2,), 16)), published, True)
    weights = load_file(voice / "model.safetensors")
    del weights["flow.flows.1.conv_post.weight_v"]
    weights["flow.novelty"] = torch.zeros(1)
    save_file(weights, voice / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as refused:
        load_model(str(voice))
    assert "flow.novelty has no place" in str(refused.value)
    assert "flow.flows.1.conv_post.weight is missing" in str(refused.value)


def test_where_there_are_no_discriminators_none_are_read(published, tmp_path):
    for place in (published, tmp_path / "absent"):
        with pytest.raises(ModelError, match="there are no discriminators"):
            read_discriminator(str(place))
    torch.save({"model": {"enc_p.emb.weight": torch.ones(2, 2)}}, tmp_path / "G_1.pth")
    with pytest.raises(ModelError, match=r"G_1\.pth: These are no discriminators"):
        read_discriminator(str(tmp_path / "G_1.pth"))


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        "no shape",
        pytest.param(
            "other tensors",
        ),
        pytest.param(
            "other json",
        ),
    ],
)
def test_damaged_discriminators_are_refused(tmp_path, damage):
    path = tmp_path / DISCRIMINATOR_FILE
    save_discriminator(Discriminator(DiscriminatorShape((2,), 16)), path)
    tensors = load_file(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "no shape":
        save_file(tensors, path)
    elif damage == "other tensors":
        save_file({"a": torch.zeros(1)}, path, metadata={"shape": json.dumps({"periods": [2], "channels_divisor": 16})})
    else:
        save_file(tensors, path, metadata={"shape": json.dumps([2, 16])})
    with pytest.raises(ModelError, match=r"no discriminators could be loaded .*Delete it"):
        load_discriminator(path)


@pytest.mark.parametrize("stochastic", [True, False])
def test_voice_that_has_diverged_does_not_speak_for_hours(stochastic: bool) -> None:
    """Log durations of 20 are 485 million frames a token."""
    model = new_voice(architecture=replace(SMALL, use_stochastic_duration_prediction=stochastic)).eval()
    tokens = torch.ones((1, 5), dtype=torch.long)
    hop = audio_spec(model.config).hop
    frames_a_token = LONGEST_TOKEN_S * 16000 / hop
    diverged = model.duration_predictor.register_forward_hook(lambda *_: torch.full((1, 1, 5), 20.0))
    with unhurried(model), torch.no_grad():
        spoken = model(tokens).waveform
    diverged.remove()
    assert spoken.shape[1] <= 5 * (frames_a_token + 1) * hop
    with torch.no_grad():
        torch.manual_seed(0)
        free = model(tokens).waveform
        torch.manual_seed(0)
        with unhurried(model):
            assert torch.equal(model(tokens).waveform, free)
    assert not model.duration_predictor._forward_hooks


def test_frozen_voice_of_several_speakers_still_learns_who_they_are() -> None:
    model = new_voice("ann", "bo")
    freeze(model, PARTS)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["embed_speaker.weight"]
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze(new_voice(), PARTS)


def test_every_part_of_a_voice_has_a_name() -> None:
    assert {name.split(".")[0] for name, _ in new_voice().named_parameters()} == set(PARTS)
