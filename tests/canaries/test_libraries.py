"""What we assume of other libraries. When one of these fails, look again at the place it names, not at the test."""

import pytest
import torch
from transformers import VitsConfig, VitsModel


def small() -> VitsModel:
    sizes = {"hidden_size": 16, "flow_size": 16, "num_hidden_layers": 1, "ffn_dim": 16, "upsample_initial_channel": 16}
    return VitsModel(VitsConfig(**sizes))


def test_transformers_still_cannot_train_vits() -> None:
    """The bug that began this project: ``labels`` raises. If it no longer does, docs/ must be told."""
    with pytest.raises(NotImplementedError, match="Training of VITS is not supported yet"):
        small()(torch.zeros(1, 5, dtype=torch.long), labels=torch.zeros(1, 513, 5))


def test_transformers_default_layerdrop_is_not_vits() -> None:
    """models.load_model sets it to zero."""
    assert VitsConfig().layerdrop == 0.1


def test_transformers_leaves_loaded_models_in_eval_mode(tmp_path) -> None:
    """Trainer.fit calls train()."""
    small().save_pretrained(tmp_path)
    assert not VitsModel.from_pretrained(tmp_path).training


def test_transformers_stochastic_duration_predictor_flips_once_too_often() -> None:
    """durations._stochastic_nll: without the extra flip, one flow alone would leave its own inverse."""
    from vits_trainer.models.duration_predictor import duration_loss

    torch.manual_seed(0)
    predictor = small().duration_predictor.eval()
    # Initialised flows are near the identity, which would hide the order of the channels.
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden, mask, frames = torch.randn(1, 16, 6), torch.ones(1, 1, 6), torch.full((1, 1, 6), 3.0)
    torch.manual_seed(1)
    theirs = predictor(hidden, mask, durations=frames, reverse=False)
    torch.manual_seed(1)
    ours = duration_loss(predictor, hidden, mask, None, frames, torch.randn_like)
    assert not torch.allclose(ours, theirs)


def test_networks_have_no_buffers() -> None:
    """runtime leaves DistributedDataParallel's broadcasting of buffers alone, as there are none."""
    from vits_trainer.models.discriminator import Discriminator

    assert not list(small().buffers())
    assert not list(Discriminator().buffers())
