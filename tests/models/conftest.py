"""A voice as it is published."""

import pytest
import torch
from transformers import VitsConfig, VitsModel

from tests.support.models import TOKENIZER


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Saves a voice as transformers does: folded decoder, layerdrop 0.1."""
    torch.manual_seed(0)
    config = VitsConfig(vocab_size=len(TOKENIZER), hidden_size=16, flow_size=16, num_hidden_layers=2, ffn_dim=32,
                        upsample_initial_channel=32, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
                        posterior_encoder_num_wavenet_layers=2, prior_encoder_num_flows=2)  # fmt: skip
    folder = tmp_path_factory.mktemp("published") / "voice"
    VitsModel(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    assert config.layerdrop == 0.1
    return folder
