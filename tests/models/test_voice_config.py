"""Configurations of voices that are invalid, or that describe more than their weights file has."""

import pytest
from transformers import VitsConfig

from vits_trainer.models.voice_config import VoiceConfig, require_size, voice_config
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.records import TensorFile


def test_every_field_of_transformers_is_declared() -> None:
    ours = {"speakers", "resblock_type"}
    assert set(VitsConfig.__annotations__) - {"model_type"} | ours == set(VoiceConfig.__annotations__)


def test_defaults_of_transformers_are_valid() -> None:
    values = {name: getattr(VitsConfig(), name) for name in VitsConfig.__annotations__ if name != "model_type"}
    config = voice_config({**values, "speakers": ["a"], "unknown": 1}, "config.json", "")
    assert config.speakers == ["a"]
    assert {name: getattr(config, name) for name in values} == {
        name: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, (list, tuple)) else value
        for name, value in values.items()
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 10**7}, "field num_hidden_layers: expected int <= 256, found 10000000"),
        ({"num_attention_heads": 0}, "field num_attention_heads: expected int >= 1, found 0"),
        ({"hidden_size": "x"}, "field hidden_size: expected int, found str"),
        ({"hidden_size": 15, "num_attention_heads": 1}, "even multiple of num_attention_heads"),
        ({"hidden_act": "nothing"}, "field hidden_act: expected an activation"),
        ({"speaking_rate": 0}, "field speaking_rate: expected float >= 0.01"),
        ({"speaking_rate": "fast"}, "field speaking_rate: expected float, found str"),
        ({"upsample_rates": []}, "field upsample_rates: expected array of length >= 1"),
        ({"upsample_rates": [8, 8]}, "The length of `upsample_kernel_sizes` (4) must match"),
        ({"sampling_rate": None}, "field sampling_rate: expected int, found null"),
        ({"sampling_rate": "16000"}, "field sampling_rate: expected int, found str"),
        ({"resblock_dilation_sizes": [[1, 3, 5]]}, "resblock_dilation_sizes: expected 3 lists"),
        ({"wavenet_dilation_rate": 16}, "wavenet_dilation_rate: 16 is too large"),
        ({"num_speakers": 5}, "speaker_embedding_size: expected at least 1"),
        ({"noise_scale": float("nan")}, "field noise_scale"),
    ],
)  # fmt: skip
def test_invalid_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=r"^config\.json: .*Fix it\.$") as error:
        voice_config(values, "config.json", "Fix it.")
    assert message in str(error.value)


def test_more_weights_than_the_file_has_are_not_allocated() -> None:
    header = TensorFile({"a": (100, 10)}, {})
    small = {"hidden_size": 2, "flow_size": 2, "ffn_dim": 2, "num_hidden_layers": 1, "upsample_initial_channel": 16}
    require_size(voice_config(small, "c", ""), header, "m")
    with pytest.raises(ModelError, match=r"m: the configuration describes [\d,]+ weights, but the file has 1,000"):
        require_size(voice_config({"ffn_dim": 65536, "num_hidden_layers": 256}, "c", ""), header, "m")
