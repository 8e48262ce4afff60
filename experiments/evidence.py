"""Files that show what a fine-tuning did: ``python -m experiments.evidence NAME DATA_DIR BEFORE AFTER [flags]``.

Evaluates two voices on the held-out clips of a prepared folder, and writes to docs/evidence/NAME the recordings and the
speech of both for three texts (Ogg Opus), the figures of all clips (``scores.json``), and those of the three texts,
which ``evaluate`` prints again from the files (``figures.json``); with ``--run``, the report page of the training.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import soundfile as sf
import soxr

from experiments.command import run

DOCS = Path(__file__).parents[1] / "docs/evidence"
OPUS_HZ = 24000
TEXTS = 3
SCORES = "mcd,f0,duration,cer,dnsmos"


def encode(source: Path, target: Path) -> None:
    samples, rate_hz = sf.read(source, dtype="float32")
    target.parent.mkdir(parents=True, exist_ok=True)
    sf.write(target, soxr.resample(samples, rate_hz, OPUS_HZ), OPUS_HZ, format="OGG", subtype="OPUS")


def reprint(folder: Path, rate_hz: int, scores: str = SCORES) -> dict[str, Any]:
    """Evaluates the files in ``folder``: means of ``before`` and ``after`` by metric."""
    with tempfile.TemporaryDirectory() as temporary:
        data, output = Path(temporary) / "data", Path(temporary) / "evaluation"
        run("prepare_data", dataset=folder, output_dir=data, target_sr=rate_hz, processes=1)
        models = f"{folder}/before,{folder}/after"
        run("evaluate", models=models, data_dir=data, output_dir=output, clips="all", scores=scores)
        return means(json.loads((output / "scores.json").read_text(encoding="utf-8")))


def means(record: dict[str, Any]) -> dict[str, Any]:
    voices = {Path(name).name: voice["figures"] for name, voice in record["voices"].items()}
    return {name: {metric: round(value["mean"], 4) for metric, value in f.items()} for name, f in voices.items()}


def write_report(run_dir: Path, target: Path) -> None:
    """Writes the report page of a run without the folders of this machine."""
    with tempfile.TemporaryDirectory() as temporary:
        page = Path(temporary) / "report.html"
        run("report", run_dir, output=page)
        folder = run_dir.absolute().parents[2]
        target.write_text(page.read_text(encoding="utf-8").replace(f"{folder}/", ""), encoding="utf-8")


def write(
    name: str, data_dir: Path, before: str, after: str, validation_fraction: float, clips: int, run_dir: Path | None
) -> None:
    folder = DOCS / name
    rate_hz = json.loads((data_dir / "dataset.json").read_text(encoding="utf-8"))["sampling_rate"]
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "evaluation"
        run(
            "evaluate", models=f"{before},{after}", data_dir=data_dir, output_dir=output, scores=SCORES,
            validation_fraction=validation_fraction, max_clips=clips,
        )  # fmt: skip
        record = json.loads((output / "scores.json").read_text(encoding="utf-8"))
        shutil.rmtree(folder, ignore_errors=True)
        by_clip = {clip["clip"]: clip["text"] for clip in record["voices"]["recorded"]["clips"]}
        shortest = sorted(by_clip, key=lambda clip: sf.info(data_dir / "wavs" / clip).duration)[:TEXTS]
        lines = []
        for number, clip in enumerate(shortest):
            encode(data_dir / "wavs" / clip, folder / f"wavs/clip{number}.opus")
            for voice, kind in ((1, "before"), (2, "after")):
                encode(output / f"speech_{voice}" / clip, folder / kind / f"audio_{number:06}.opus")
            lines.append(f"clip{number}|{by_clip[clip]}\n")
        (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    for kind, voice in (("before", before), ("after", after)):
        record["voices"][kind] = record["voices"].pop(voice)
    (folder / "scores.json").write_text(json.dumps(means(record), indent=1) + "\n", encoding="utf-8")
    if run_dir is not None:
        write_report(run_dir, folder / "report.html")
    figures = {"sampling_rate": rate_hz, "figures": reprint(folder, rate_hz)}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--validation_fraction", type=float, default=0.25)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--run", dest="run_dir", type=Path)
    write(**vars(parser.parse_args()))
