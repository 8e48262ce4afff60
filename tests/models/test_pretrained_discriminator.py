"""Discriminators from a voice's directory, original checkpoints and finetune-hf-vits checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.models import copied, speech
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, Discriminator, load_discriminator, save_discriminator
from vits_trainer.models.pretrained import load_model
from vits_trainer.models.pretrained_discriminator import (
    has_discriminator,
    load_or_create_discriminator,
    read_discriminator,
)
from vits_trainer.utils.errors import ModelError


def test_discriminators_are_loaded_with_their_saved_shape(tmp_path):
    saved = Discriminator(DiscriminatorShape((3, 7), 8))
    save_discriminator(saved, tmp_path / "d.safetensors")
    loaded = load_discriminator(tmp_path / "d.safetensors")
    assert loaded.shape == DiscriminatorShape((3, 7), 8)
    assert [d.period for d in loaded.discriminators[1:]] == [3, 7]
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_discriminators_of_a_voice_are_loaded_or_created(tmp_path):
    save_discriminator(Discriminator(DiscriminatorShape((3,), 8)), tmp_path / DISCRIMINATOR_FILE)
    fresh = DiscriminatorShape((2,), 16)
    assert load_or_create_discriminator(str(tmp_path), fresh).shape == DiscriminatorShape((3,), 8)
    assert load_or_create_discriminator(None, fresh).shape == fresh
    (tmp_path / "without").mkdir()
    assert load_or_create_discriminator(str(tmp_path / "without"), fresh).shape == fresh
    with pytest.raises(ModelError, match="absent: cannot load a voice"):
        load_or_create_discriminator(str(tmp_path / "absent"), fresh)


def legacy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames weight norm to torch's names before parametrizations."""
    return {
        name.replace(".parametrizations.weight.original0", ".weight_g").replace(
            ".parametrizations.weight.original1", ".weight_v"
        ): tensor
        for name, tensor in state.items()
    }


def assert_same_scores(first: Discriminator, second: Discriminator) -> None:
    waveform = torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))
    for actual, expected in zip(first(waveform).scores, second(waveform).scores, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_original_discriminators_are_loaded(tmp_path):
    discriminator = Discriminator(DiscriminatorShape((2, 3), 16))
    content = {"model": legacy(discriminator.state_dict()), "iteration": 100000, "optimizer": {}, "learning_rate": 2e-4}
    torch.save(content, tmp_path / "D_100000.pth")
    read = read_discriminator(str(tmp_path / "D_100000.pth"))
    assert all(torch.equal(tensor, discriminator.state_dict()[name]) for name, tensor in read.state_dict().items())
    loaded = load_or_create_discriminator(None, DiscriminatorShape((5,), 16), str(tmp_path / "D_100000.pth"))
    assert loaded.shape == DiscriminatorShape((2, 3), 16)


def as_finetune_hf_vits(folder, discriminator: Discriminator, published, weight_norm_everywhere: bool):
    """Writes both networks to one file: folded, with the last layer's name there, or all with weight norm."""
    voice = copied(published, folder)
    weights = load_file(voice / "model.safetensors")
    embedded = legacy(discriminator.state_dict())
    if weight_norm_everywhere:
        model = load_model(str(published))
        for coupling in model.flow.flows:
            nn.utils.parametrizations.weight_norm(coupling.conv_pre)
            nn.utils.parametrizations.weight_norm(coupling.conv_post)
        weights = legacy({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()})
    else:
        for name in [name for name in embedded if name.endswith("weight_g")]:
            direction = embedded.pop(name.replace("weight_g", "weight_v"))
            norm = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
            embedded[name.removesuffix("_g")] = embedded.pop(name) * direction / norm
    weights |= {f"discriminator.{name.replace('conv_post', 'final_conv')}": w for name, w in embedded.items()}
    save_file({name: w.contiguous() for name, w in weights.items()}, voice / "model.safetensors", {"format": "pt"})
    return voice


@pytest.mark.parametrize("normed", [False, True], ids=["as it publishes them", "weight norm everywhere"])
def test_finetune_hf_vits_checkpoint_has_voice_and_discriminators(published, tmp_path, normed):
    discriminator = Discriminator(DiscriminatorShape((2, 3, 5), 16))
    voice = as_finetune_hf_vits(tmp_path / "finetuned", discriminator, published, normed)
    assert has_discriminator(str(voice))
    assert not has_discriminator(str(published))
    assert_same_scores(load_or_create_discriminator(str(voice), DiscriminatorShape()), discriminator)
    model = load_model(str(voice))
    torch.testing.assert_close(speech(model), speech(load_model(str(published))), atol=1e-5, rtol=1e-4)
    assert not [name for name in model.state_dict() if "conv_pre.param" in name or "conv_post.param" in name]


def test_mismatches_of_a_finetune_hf_vits_checkpoint_are_listed(published, tmp_path):
    voice = as_finetune_hf_vits(tmp_path / "finetuned", Discriminator(DiscriminatorShape((2,), 16)), published, True)
    weights = load_file(voice / "model.safetensors")
    del weights["flow.flows.1.conv_post.weight_v"]
    weights["flow.novelty"] = torch.zeros(1)
    save_file(weights, voice / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as raised:
        load_model(str(voice))
    assert "flow.novelty is unexpected" in str(raised.value)
    assert "flow.flows.1.conv_post.weight is missing" in str(raised.value)


def test_source_without_discriminators_is_rejected(published, tmp_path):
    for source, message in ((published, "no discriminators found"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(ModelError, match=message):
            read_discriminator(str(source))
    torch.save({"model": {"enc_p.emb.weight": torch.ones(2, 2)}}, tmp_path / "G_1.pth")
    with pytest.raises(ModelError, match=r"G_1\.pth: These are not VITS discriminators"):
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
def test_damaged_discriminators_are_rejected(tmp_path, damage):
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
    with pytest.raises(ModelError, match=r"discriminator\.safetensors: .*Delete it"):
        load_discriminator(path)
