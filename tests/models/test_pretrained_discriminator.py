"""Discriminators beside a voice, in the original's pickle, and inside finetune-hf-vits's checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import VitsConfig, VitsModel

from tests.support.models import TOKENIZER, copied, speech
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, Discriminator, load_discriminator, save_discriminator
from vits_trainer.models.pretrained import load_model
from vits_trainer.models.pretrained_discriminator import discriminator_for, has_discriminator, read_discriminator
from vits_trainer.utils.errors import ModelError


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
