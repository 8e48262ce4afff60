"""``convert``: from the command line to files for other programs."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import VitsModel, pipeline

from tests.support.foreign_checkpoints import golden_weights, write_coqui, write_original
from tests.support.golden import scale_only_case
from tests.support.random_voice import save_voice
from vits_trainer.cli import convert as convert_command
from vits_trainer.cli.main import main
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.diagnostics import golden
from vits_trainer.models import parameter_names
from vits_trainer.models.discriminator import Discriminator, load_discriminator
from vits_trainer.models.pretrained import load_model, state_on_cpu
from vits_trainer.models.pretrained_discriminator import read_discriminator
from vits_trainer.utils.errors import ModelError

pytestmark = pytest.mark.slow

CASES = ("single_sdp", "multi_sdp")
SMALL = DiscriminatorShape((2, 3), 16)


def convert(*args: object) -> int:
    return main(["convert", *map(str, args)])


def speech(model: VitsModel, speaker: int | None = None) -> torch.Tensor:
    model.noise_scale = model.noise_scale_duration = 0.0
    with torch.no_grad():
        return model.eval()(torch.arange(1, 30)[None], speaker_id=speaker).waveform


@pytest.mark.parametrize("case", CASES)
def test_converted_golden_voice_has_the_golden_losses(tmp_path: Path, case: str) -> None:
    assert convert("--input", write_original(tmp_path / "mms", case), "--output", tmp_path / "voice") == 0
    converted = parameter_names.to_original_generator(state_on_cpu(load_model(str(tmp_path / "voice"))))
    read = scale_only_case(case)
    tensors = dict(read.tensors) | {f"generator.{name}": tensor for name, tensor in converted.items()}
    values = {value.name: value for value in golden.compare_case(replace(read, tensors=tensors))}
    losses = [values[name] for name in ("loss_mel", "loss_kl", "loss_duration")]  # of the generator alone
    assert [value for value in losses if not value.agrees] == []
    # The import splits the weights into g and v again: v has another norm, and therefore another gradient.
    assert not values["generator gradient dec.ups.0.weight_v"].agrees


@pytest.mark.parametrize("case", CASES)
def test_original_to_original_keeps_every_weight_exactly(tmp_path: Path, case: str) -> None:
    discriminator = Discriminator(SMALL)
    source = write_original(tmp_path / "mms", case, discriminator)
    assert convert(source, "--to", "original", "--output", tmp_path / "back") == 0
    back = torch.load(tmp_path / "back/G_0.pth")["model"]
    weights = golden_weights(case)[0]
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())
    assert any(name.endswith("weight_g") for name in back)
    theirs, ours = torch.load(source.with_name("D_100000.pth"))["model"], torch.load(tmp_path / "back/D_0.pth")["model"]
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("mms", "back"))
    for part in ("model", "data"):
        assert {name: after[part][name] for name in before[part] if name != "text_cleaners"} == {
            name: value for name, value in before[part].items() if name != "text_cleaners"
        }


@pytest.mark.parametrize("case", CASES)
def test_round_trip_through_transformers_keeps_weights_and_waveform(tmp_path: Path, case: str) -> None:
    source = write_original(tmp_path / "mms", case)
    assert convert(source, "--output", tmp_path / "voice") == 0
    assert convert(tmp_path / "voice", "--to", "original", "--output", tmp_path / "back") == 0
    weights, back = golden_weights(case)[0], torch.load(tmp_path / "back/G_0.pth")["model"]
    assert back.keys() == weights.keys()
    for name in weights:
        if name.endswith("weight_g"):
            direction = name.replace("weight_g", "weight_v")
            one, other = (
                state[name] * state[direction] / state[direction].flatten(1).norm(dim=1).view_as(state[name])
                for state in (weights, back)
            )
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
        elif not name.endswith("weight_v"):
            assert torch.equal(back[name], weights[name]), name
    assert convert(tmp_path / "back", "--output", tmp_path / "again") == 0
    speaker = 1 if case == "multi_sdp" else None
    one, other = (VitsModel.from_pretrained(tmp_path / name) for name in ("voice", "again"))
    torch.testing.assert_close(speech(one, speaker), speech(other, speaker), atol=1e-6, rtol=0)


def test_converted_voice_works_in_a_transformers_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    discriminator = Discriminator(SMALL)
    write_original(tmp_path / "mms", discriminator=discriminator)
    assert convert(tmp_path / "mms", "--output", tmp_path / "voice") == 0
    assert "original" in capsys.readouterr().out
    speech_output = pipeline("text-to-speech", model=str(tmp_path / "voice"))("silav dinya")
    assert speech_output["sampling_rate"] == 22050
    assert speech_output["audio"].size % 256 == 0
    assert load_discriminator(tmp_path / "voice/discriminator.safetensors").shape == SMALL


def test_coqui_voice_converts_to_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    discriminator = Discriminator(SMALL)
    source = write_coqui(tmp_path / "coqui", "multi_sdp", discriminator)
    assert convert("--from", "coqui", "--to=original", "--input", source, "--output", tmp_path / "back") == 0
    assert "note: its text cleaner (basic_cleaners) is not converted" in capsys.readouterr().out
    weights, back = golden_weights("multi_sdp")[0], torch.load(tmp_path / "back/G_0.pth")["model"]
    assert all(torch.equal(back[name], weight) for name, weight in weights.items() if name != "enc_p.emb.weight")
    symbols = (tmp_path / "back/vocab.txt").read_text("utf-8").split("\n")
    assert len(symbols) == 40 + 1
    assert symbols[:5] == ["<BLNK>", "!", ".", "?", " "]
    read = read_discriminator(str(tmp_path / "back/D_0.pth"))
    assert all(torch.equal(tensor, discriminator.state_dict()[name]) for name, tensor in read.state_dict().items())


def test_discriminator_flag_selects_other_discriminators(tmp_path: Path) -> None:
    source = write_original(tmp_path / "mms", discriminator=Discriminator(SMALL))
    write_original(tmp_path / "other", discriminator=Discriminator(DiscriminatorShape((7,), 8)))
    given = tmp_path / "other/D_100000.pth"
    assert convert(source, "--to", "original", "--discriminator", given, "--output", tmp_path / "back") == 0
    assert read_discriminator(str(tmp_path / "back/D_0.pth")).shape.channels_divisor == 8


def test_code_in_a_checkpoint_gives_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Program:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'trace'}",)

    source = write_original(tmp_path / "mms")
    torch.save(torch.load(source) | {"hook": Program()}, source)
    assert convert(source, "--output", tmp_path / "voice") == 2
    message = capsys.readouterr().err
    assert "system" in message
    assert "was not loaded" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "voice").exists()


def test_existing_output_is_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "mms")
    assert convert(source, "--output", source.parent) == 2
    assert "already exists. Choose another path" in capsys.readouterr().err
    assert source.exists()


def test_unwritable_output_gives_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "mms")
    for output in (source / "voice", tmp_path / ("x" * 300), tmp_path / ("x" * 254)):
        for kind in ("hf", "original"):
            assert convert(source, "--to", kind, "--output", output) == 2
            message = capsys.readouterr().err
            assert "cannot be written" in message
            assert message.count("\n") == 1


@pytest.mark.parametrize("kind", ["hf", "original"])
def test_failed_write_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = write_original(tmp_path / "mms")
    monkeypatch.setattr("vits_trainer.models.voice_versions.install", full)
    monkeypatch.setattr("vits_trainer.models.conversion.export_original.put", full)
    assert convert(source, "--to", kind, "--output", tmp_path / "out/voice") == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_default_output_name_is_derived_from_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_original(tmp_path / "mms")
    monkeypatch.chdir(tmp_path)
    assert convert("mms/G_100000.pth", "--to", "original") == 0
    assert Path("G_100000-original/G_0.pth").is_file()


def test_voice_that_original_code_cannot_build_raises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_coqui(tmp_path / "coqui", "single_sdp", Discriminator(SMALL))
    config = json.loads((tmp_path / "coqui/config.json").read_text())
    config["model_args"] |= {"dilation_rate_flow": 2, "dilation_rate_posterior_encoder": 2}
    (tmp_path / "coqui/config.json").write_text(json.dumps(config))
    assert convert(source, "--to", "original", "--output", tmp_path / "back") == 2
    assert "wavenet_dilation_rate 2 (original: 1)" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_onnx_file_with_different_output_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_original(tmp_path / "mms")
    assert convert(source, "--to", "onnx", "--output", tmp_path / "voice") == 2
    assert "must end with .onnx" in capsys.readouterr().err

    def differs(model: VitsModel, path: Path) -> None:
        raise ModelError(f"{path} output differs")

    monkeypatch.setattr(convert_command, "export_onnx", lambda model, tokenizer, path, half: path.write_bytes(b""))
    monkeypatch.setattr(convert_command, "compare_onnx", differs)
    assert convert(source, "--to", "onnx", "--output", tmp_path / "voice.onnx") == 2
    assert "output differs" in capsys.readouterr().err
    assert not (tmp_path / "voice.onnx").exists()
    monkeypatch.setattr(convert_command, "compare_onnx", lambda model, path: "real-time factor 0.5")
    assert convert(source, "--to", "onnx", "--output", tmp_path / "voice.onnx") == 0
    assert "real-time factor 0.5" in capsys.readouterr().out


def test_voice_is_written_for_piper_and_played_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    piper = pytest.importorskip("piper")
    source = save_voice(tmp_path / "voice")
    output = tmp_path / "Dengê min"
    assert convert(source, "--to", "piper", "--language", "ku", "--precision", "fp16", "--output", output) == 0
    printed = capsys.readouterr().out
    assert "note: players do not write out numbers" in printed
    assert re.search(r"ku-dengê_min-high\.onnx: \d+\.\d MB; .*maximum sample difference", printed)
    assert "note: what float16 changes is" in printed
    assert sorted(path.name for path in output.iterdir()) == ["ku-dengê_min-high.onnx", "ku-dengê_min-high.onnx.json"]
    chunks = piper.PiperVoice.load(output / "ku-dengê_min-high.onnx").synthesize("Silav dinya. Çawa yî?")
    assert sum(len(chunk.audio_float_array) for chunk in chunks) > 1000
    # What this package wrote is no voice of Piper's layout; the folder is still there.
    assert convert(output / "ku-dengê_min-high.onnx", "--output", tmp_path / "again") == 2
    assert "was exported by vits_trainer. Pass the folder" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_unknown_language_and_idle_flags_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_voice(tmp_path / "voice")
    assert convert(source, "--to", "sherpa", "--output", tmp_path / "out") == 2
    assert "give --language, such as ku" in capsys.readouterr().err
    assert convert(source, "--precision", "fp16", "--output", tmp_path / "out") == 2
    assert "--precision fp16: only for --to onnx, piper, sherpa" in capsys.readouterr().err
    assert convert(source, "--to", "onnx", "--language", "ku", "--output", tmp_path / "out.onnx") == 2
    assert "--language ku: only for --to piper and sherpa" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["voice"]


def test_unusable_onnx_gives_a_one_line_error_and_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "voice.onnx").write_bytes(b"no protobuf")
    assert convert(tmp_path / "voice.onnx", "--output", tmp_path / "voice") == 2
    message = capsys.readouterr().err
    assert "voice.onnx: is not an ONNX file, or is damaged" in message
    assert message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["voice.onnx"]
