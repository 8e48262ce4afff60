"""The public Python interface: the example of docs/python.md, run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vits_trainer
from tests.support.audio import encode, voice
from tests.support.models import SMALL
from vits_trainer import PrepareConfig, VitsTrainerError, prepare
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.data.prepared import open_prepared
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import export
from vits_trainer.text.tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
DISCRIMINATOR = DiscriminatorShape(periods=(2, 3), channels_divisor=8)


def write_clips(folder: Path) -> tuple[list[str], list[str]]:
    folder.mkdir()
    paths = [folder / f"clip{n}.flac" for n in range(10)]
    for n, path in enumerate(paths):
        path.write_bytes(encode(voice(0.8 + 0.05 * n, 22050), 22050, "FLAC"))
    return [str(path) for path in paths], [f"number {n} speaks" for n in range(10)]


def test_example_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    audio_files, texts = write_clips(tmp_path / "audio")
    tokenizer = build_tokenizer(texts)
    export(new_model(SMALL, tokenizer, []), tokenizer, Discriminator(DISCRIMINATOR), tmp_path / "base")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {"audio_files": audio_files, "texts": texts, "base_voice": str(tmp_path / "base")}
    exec(compile(example, "docs/python.md", "exec"), names)  # noqa: S102 - our own document
    result, speech = names["result"], names["speech"]
    assert (result.status, result.update, result.exit_code, result.voice) == ("done", 2, 0, Path("my_voice"))
    assert (result.run_dir / "metrics.jsonl").is_file()
    assert speech.sampling_rate == 16000
    assert (tmp_path / "speech.wav").stat().st_size == 44 + 2 * len(speech.samples)
    printed = capsys.readouterr().out
    assert "10 clips" in printed
    assert "mcd_db" in printed


def test_dataset_gives_the_clips_of_its_files(tmp_path: Path) -> None:
    from datasets import Audio, Dataset

    audio_files, texts = write_clips(tmp_path / "audio")
    columns = {"path": audio_files, "sentence": texts, "speaker": ["ava", "bo"] * 5}
    clips = Dataset.from_dict(columns).cast_column("path", Audio())
    config = PrepareConfig(output_dir=str(tmp_path / "training"), processes=1)
    assert prepare(config, clips).accepted == 10
    prepared = open_prepared(tmp_path / "training")
    assert (prepared.texts, prepared.speakers) == (texts, ["ava", "bo"])
    assert prepare(config, clips).accepted == 10  # already prepared
    with pytest.raises(VitsTrainerError, match=r"already contains a prepared set"):
        prepare(config, clips.select(range(5)))
    (tmp_path / "audio/clip3.flac").unlink()
    again = prepare(PrepareConfig(output_dir=str(tmp_path / "other"), processes=1), clips)
    assert again.accepted == 9
    assert "missing-file" in (tmp_path / "other/rejected.csv").read_text()


def test_dataset_of_arrays_is_rejected(tmp_path: Path) -> None:
    from datasets import Dataset

    clips = Dataset.from_dict({"audio": [{"array": [0.0, 0.1], "sampling_rate": 16000}], "text": ["a"]})
    with pytest.raises(VitsTrainerError, match=r"holds arrays. Keep it as datasets.Audio"):
        prepare(PrepareConfig(output_dir=str(tmp_path / "training")), clips)


def test_public_names_are_lazy_and_complete() -> None:
    assert all(getattr(vits_trainer, name) is not None for name in vits_trainer.__all__)
    assert set(vits_trainer.__all__) <= set(dir(vits_trainer))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vits_trainer.trian  # noqa: B018
    code = (
        "import sys; from vits_trainer import TrainConfig, PrepareConfig, EvaluateConfig, VitsTrainerError; "
        "print(*{'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (ended.stdout, ended.stderr) == ("\n", "")
