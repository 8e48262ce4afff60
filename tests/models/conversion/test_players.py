"""Files for Piper and sherpa-onnx, played by both: the ids of the tokenizer, the samples of transformers."""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.support.loud_voices import loud_voice
from vits_trainer.models.conversion import players
from vits_trainer.models.pretrained import fold_weight_norm
from vits_trainer.models.type2_decoder import Type2Decoder
from vits_trainer.text.tokenizer import VoiceTokenizer, build_tokenizer, encode
from vits_trainer.utils.errors import ModelError

piper = pytest.importorskip("piper")
sherpa_onnx = pytest.importorskip("sherpa_onnx")
pytestmark = pytest.mark.slow

LETTERS = ["silav dinya çawa yî? ez baş im, rêya dûr"]
VOICES = {
    "letters": (build_tokenizer(LETTERS, "kmr-script_latin"), [], 1),
    "speakers, plain letters": (build_tokenizer(["silav dinya"], "kmr-script_latin"), ["ava", "bo", "cem"], 1),
    "phonemes, type 2": (build_tokenizer(["hello world, this is a test"], "eng", phonemize=True), [], 2),
}
TEXTS = {"letters": "Silav dinya, ÇAWA yî ez baş im ÊÎŞÛ", "speakers, plain letters": "Silav Dinya"}


class Exported:
    """A voice with its files for both players."""

    def __init__(self, name: str, folder: Path) -> None:
        self.tokenizer, speakers, resblock_type = VOICES[name]
        self.text = TEXTS.get(name, "hello world, this")
        self.model = loud_voice(self.tokenizer, speakers, True, resblock_type=resblock_type)
        self.path = folder / f"{players.file_stem(self.model, self.tokenizer.language, 'A voice')}.onnx"
        players.export_player_file(self.model, self.tokenizer, self.tokenizer.language, self.path)
        players.write_piper_settings(self.model, self.tokenizer, self.tokenizer.language, self.path)
        players.write_sherpa_tokens(self.model, self.tokenizer, folder / "tokens.txt")

    @property
    def speakers(self) -> tuple[int | None, ...]:
        return (None,) if self.model.config.num_speakers == 1 else (0, 2)

    def expected(self, speaker: int | None) -> np.ndarray:
        voice = fold_weight_norm(self.model)
        voice.noise_scale = voice.noise_scale_duration = 0.0
        ids = torch.from_numpy(encode(self.tokenizer, self.text))[None]
        with torch.inference_mode():
            return voice(ids, speaker_id=speaker, speaking_rate=1.0).waveform[0].numpy()

    def in_sherpa(self) -> object:
        vits = sherpa_onnx.OfflineTtsVitsModelConfig(
            model=str(self.path), tokens=str(self.path.with_name("tokens.txt")), noise_scale=0.0, noise_scale_w=0.0
        )
        return sherpa_onnx.OfflineTts(
            sherpa_onnx.OfflineTtsConfig(model=sherpa_onnx.OfflineTtsModelConfig(vits=vits, num_threads=1))
        )


@pytest.fixture(scope="module", params=VOICES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(request.param, tmp_path_factory.mktemp("players"))


def test_piper_plays_the_samples_of_transformers(exported: Exported, caplog: pytest.LogCaptureFixture) -> None:
    voice = piper.PiperVoice.load(exported.path)
    for speaker in exported.speakers:
        settings = piper.SynthesisConfig(
            speaker_id=speaker, noise_scale=0.0, noise_w_scale=0.0, length_scale=1.0, normalize_audio=False
        )
        with caplog.at_level(logging.WARNING):
            (chunk,) = voice.synthesize(exported.text, settings)
        expected = exported.expected(speaker)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(chunk.audio_float_array, expected, atol=1e-4, rtol=0)
        assert chunk.sample_rate == exported.model.config.sampling_rate
    assert "Missing phoneme" not in caplog.text


def test_sherpa_plays_the_samples_of_transformers(exported: Exported) -> None:
    tts = exported.in_sherpa()
    assert tts.sample_rate == exported.model.config.sampling_rate
    assert tts.num_speakers == exported.model.config.num_speakers
    settings = sherpa_onnx.GenerationConfig()
    text = exported.text
    if exported.tokenizer.phonemize:  # sherpa-onnx 2 has no phonemizer
        phonemes = piper.PiperVoice.load(exported.path).phonemize(text)
        settings.phoneme_codepoints, text = [[ord(one) for one in sentence] for sentence in phonemes], ""
    for speaker in exported.speakers:
        settings.sid = speaker or 0
        samples = np.asarray(tts.generate(text, settings).samples, dtype=np.float32)
        np.testing.assert_allclose(samples, exported.expected(speaker), atol=1e-4, rtol=0)


def token_ids(exported: Exported, ids: list[int]) -> list[int]:
    """Returns the ids that reach the voice."""
    file = onnx.load(exported.path)
    if not any("merged" in node.output for node in file.graph.node):
        return ids
    file.graph.output.append(onnx.helper.make_tensor_value_info("merged", onnx.TensorProto.INT64, None))
    session = onnxruntime.InferenceSession(file.SerializeToString())
    inputs = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": np.zeros(3, np.float32)}
    return session.run(["merged"], inputs)[0][0].tolist()


def test_ids_in_piper_are_those_of_the_tokenizer(exported: Exported) -> None:
    voice = piper.PiperVoice.load(exported.path)
    texts = [exported.text, exported.text.upper(), "e", "‽"] if not exported.tokenizer.phonemize else [exported.text]
    for text in texts:
        ids = voice.phonemes_to_ids([one for sentence in voice.phonemize(text) for one in sentence])
        assert token_ids(exported, ids) == (encode(exported.tokenizer, text).tolist() or [0])


def test_ids_in_sherpa_are_those_of_the_tokenizer(exported: Exported, tmp_path: Path) -> None:
    if exported.tokenizer.phonemize:
        pytest.skip("sherpa-onnx 2 has no phonemizer")
    echo = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> echo (int64[1, s] input, int64[1] input_lengths, float[3] scales'
        f"{', int64[1] sid' if exported.model.config.num_speakers > 1 else ''}) => (float[1, 1, t] output) "
        "<int64[1] one = {1}> { values = Cast <to = 1> (input) output = Unsqueeze (values, one) }"
    )
    file = onnx.load(exported.path)
    echo.metadata_props.extend(file.metadata_props)
    onnx.save(echo, tmp_path / "echo.onnx")
    (tmp_path / "tokens.txt").write_bytes(exported.path.with_name("tokens.txt").read_bytes())
    copy = object.__new__(Exported)
    copy.path = tmp_path / "echo.onnx"
    ids = [int(value) for value in copy.in_sherpa().generate(exported.text).samples]
    assert token_ids(exported, ids) == encode(exported.tokenizer, exported.text).tolist()


def test_files_are_named_and_filled_as_home_assistant_wants(exported: Exported) -> None:
    config = json.loads(exported.path.with_name(f"{exported.path.name}.json").read_text("utf-8"))
    assert config["dataset"] == exported.path.stem  # the name that it looks for
    language, name, quality = exported.path.stem.split("-")
    assert (language, name, quality) == (config["language"]["code"], "a_voice", config["audio"]["quality"])
    assert config["num_symbols"] == exported.model.config.vocab_size
    assert list(config["speaker_id_map"]) == (exported.model.config.speakers or [])
    assert language == ("en_US" if exported.tokenizer.phonemize else "ku")
    assert quality == ("low" if exported.tokenizer.phonemize else "high")
    metadata = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    needed = {"comment", "frontend", "add_blank", "use_eos_bos", "sample_rate", "n_speakers", "language"}
    assert needed <= metadata.keys()


def test_inputs_and_outputs_are_those_of_piper(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(str(exported.path))
    names = [entry.name for entry in session.get_inputs()]
    assert names == ["input", "input_lengths", "scales", *(["sid"] if len(exported.speakers) > 1 else [])]
    assert [entry.name for entry in session.get_outputs()] == ["output", "durations"]
    inputs = {"input": np.array([[0, 5, 0, 4, 0]]), "input_lengths": np.array([5]), "scales": np.ones(3, np.float32)}
    if len(names) == 4:
        inputs["sid"] = np.array([1])
    speech, durations = session.run(None, inputs)
    assert speech.ndim == 3
    assert durations.shape == (1, 5)
    assert durations.sum() * 256 == speech.shape[2]


def test_voice_of_type_2_is_exported_in_its_own_size(exported: Exported) -> None:
    is_type2 = isinstance(exported.model.decoder, Type2Decoder)
    shapes = {tuple(tensor.dims) for tensor in onnx.load(exported.path).graph.initializer}
    channels = exported.model.config.upsample_initial_channel
    assert (channels // 2, 16, 7) in shapes if is_type2 else (channels, 16, 7) in shapes
    assert ((channels, 16, 7) in shapes) is not is_type2


def test_comparison_finds_another_voice(exported: Exported) -> None:
    assert players.compare_player_file(exported.model, exported.path).difference < 1e-4
    other = loud_voice(exported.tokenizer, exported.model.config.speakers, True, seed=2)
    with pytest.raises(ModelError, match="output differs from the voice"):
        players.compare_player_file(other, exported.path)


@pytest.mark.parametrize(
    ("language", "code"),
    [("eng", "en_US"), ("en_GB", "en_GB"), ("kmr-script_latin", "ku"), ("pt-br", "pt_BR"), ("deu", "de")],
)
def test_languages_are_named_as_players_do(language: str, code: str) -> None:
    assert players.locale_code(language) == code


def test_notes_say_what_players_lack() -> None:
    def notes(tokenizer: VoiceTokenizer, player: str = "piper") -> str:
        return " ".join(players.player_notes(tokenizer, player))

    assert "do not write out numbers" in notes(VOICES["letters"][0])
    assert "phoneme_codepoints" in notes(VOICES["phonemes, type 2"][0], "sherpa")
    assert notes(VOICES["phonemes, type 2"][0]) == ""
    assert "Piper uses _ $ itself" in notes(build_tokenizer(["a_b $"]))
    romanized = build_tokenizer(["silav"])
    romanized.is_uroman = True
    assert "do not romanize" in notes(romanized)
