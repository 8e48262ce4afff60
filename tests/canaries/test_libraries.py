"""Assumptions about other libraries. If a test fails, review the code that it names, not the test."""

import pytest
import torch
from transformers import VitsConfig, VitsModel


def small() -> VitsModel:
    sizes = {"hidden_size": 16, "flow_size": 16, "num_hidden_layers": 1, "ffn_dim": 16, "upsample_initial_channel": 16}
    return VitsModel(VitsConfig(**sizes))


def test_transformers_still_cannot_train_vits() -> None:
    """``labels`` raises, the original reason for this project. If it no longer does, update docs/."""
    with pytest.raises(NotImplementedError, match="Training of VITS is not supported yet"):
        small()(torch.zeros(1, 5, dtype=torch.long), labels=torch.zeros(1, 513, 5))


def test_transformers_default_layerdrop_differs_from_vits() -> None:
    """pretrained.load_model sets it to zero."""
    assert VitsConfig().layerdrop == 0.1


def test_transformers_leaves_loaded_models_in_eval_mode(tmp_path) -> None:
    """Trainer.fit calls train()."""
    small().save_pretrained(tmp_path)
    assert not VitsModel.from_pretrained(tmp_path).training


def test_transformers_stochastic_duration_predictor_flips_once_too_often() -> None:
    """duration_predictor._stochastic_nll: an extra flip in transformers' training direction changes the loss."""
    from vits_trainer.models.duration_predictor import duration_loss

    torch.manual_seed(0)
    predictor = small().duration_predictor.eval()
    # Flows are initialised close to the identity, which would hide the order of channels.
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden, mask, frames = torch.randn(1, 16, 6), torch.ones(1, 1, 6), torch.full((1, 1, 6), 3.0)
    torch.manual_seed(1)
    transformers_loss = predictor(hidden, mask, durations=frames, reverse=False)
    torch.manual_seed(1)
    loss = duration_loss(predictor, hidden, mask, None, frames, torch.randn_like)
    assert not torch.allclose(loss, transformers_loss)


def test_networks_have_no_buffers() -> None:
    """distributed.runtime does not configure broadcasting of buffers in DistributedDataParallel."""
    from vits_trainer.models.discriminator import Discriminator

    assert not list(small().buffers())
    assert not list(Discriminator().buffers())
