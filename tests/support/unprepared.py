"""Data sets as others publish them: Parquet of ``datasets``, with recordings of several formats and rates."""

from pathlib import Path

import datasets

from tests.support.audio import encode, voice

FORMATS = (("FLAC", 22050), ("WAV", 48000), ("MP3", 32000), ("OGG", 16000), ("WAV", 16000))


def rows(count: int, start: int = 0) -> list[dict[str, object]]:
    """Returns rows with recordings of different lengths, formats and rates."""
    return [
        {
            "audio": {"bytes": encode(voice(0.6 + 0.05 * (n % 7), rate_hz, 100 + n), rate_hz, kind), "path": f"{n}"},
            "sentence": f" Silav  {n}. ",
            "speaker": f"s{n % 3}",
        }
        for n in range(start, start + count)
        for kind, rate_hz in [FORMATS[n % len(FORMATS)]]
    ]


def dataset_of(written: list[dict[str, object]]) -> datasets.Dataset:
    features = datasets.Features(
        audio={"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        sentence=datasets.Value("string"),
        speaker=datasets.Value("string"),
    )
    return datasets.Dataset.from_list(written, features=features).cast_column("audio", datasets.Audio())


def write_dataset(folder: Path, files: list[list[dict[str, object]]], row_group: int = 1000) -> Path:
    """Writes each list of rows as a Parquet file, as ``datasets`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, written in enumerate(files):
        name = f"train-{number:05d}-of-{len(files):05d}.parquet"
        dataset_of(written).to_parquet(str(folder / name), batch_size=row_group)
    return folder
