"""What prepare_data is told."""

import re
from dataclasses import dataclass
from typing import Literal

from vits_trainer.utils.errors import require

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""owner/name, which a relative folder may look like."""


@dataclass(frozen=True)
class PrepareConfig:
    """Recordings and their texts, from wherever they are, into one folder that ``train_vits`` reads."""

    dataset: str = "amedcj/kurmanji-commonvoice"
    """An extracted Common Voice release (validated.tsv with clips/), an audio folder (metadata.csv with a header
    file_name,text), an LJ Speech folder (metadata.csv with wavs/ or audio/), corrections (NAME.wav with NAME.txt),
    Parquet (a file, a folder of files or a pattern), or the name of a data set on the Hugging Face Hub (owner/name)."""
    split: str = "train"
    """Hub: the split to read, or several as train+validated; elsewhere unused."""
    config_name: str | None = None
    """Hub: the data set's configuration, such as a language (null = its only or default one)."""
    revision: str | None = None
    """Hub: branch, tag or commit to read (null = its main branch)."""
    text_column: str | None = None
    """Column of the texts (null = sentence, else text)."""
    audio_column: str | None = None
    """Column of the recordings or their files (null = audio, else path; in an audio folder file_name)."""
    speaker_column: str | None = None
    """Column of the speakers (null = client_id, else speaker_id, else speaker, where there is one)."""
    output_dir: str = "training"
    """The prepared folder to write: wavs/, metadata.csv (or shards/, shards.json), rejected.csv, dataset.json."""
    target_sr: int = 16000
    """Sampling rate to write, in Hz: the rate of the model that will be trained."""
    max_samples: int = 0
    """Stop after this many good clips (0 = all)."""
    min_upvotes: int = 2
    """Common Voice: fewer up-votes than this reject a clip (0 = off)."""
    max_downvotes: int = 0
    """Common Voice: more down-votes than this reject a clip."""
    trim_silence: bool = False
    """Cut the silence at both ends of each clip: what is 40 dB below its loudest 20 ms, all but 50 ms of it
    (false = off)."""
    min_duration_s: float = 0.1
    """Clips shorter than this, in seconds after trimming, are rejected (0.1 is the least that can be trained on)."""
    max_duration_s: float = 60.0
    """Clips longer than this, in seconds after trimming, are rejected (at most 300)."""
    min_loudness_dbfs: float | None = None
    """Clips whose RMS is below this, in dB relative to full scale, such as -50, are rejected (null = off)."""
    loudness_dbfs: float | None = None
    """Bring each clip's RMS to this, in dB relative to full scale, such as -23; clips whose peak would reach full scale
    stay softer (null = off: each stays as loud as it is)."""
    processes: int = 0
    """Worker processes (0 = one for each core)."""
    shards: int = 0
    """Write so many shards/*.parquet with a manifest shards.json instead of wavs/ (0 = wavs/): for many clips, for
    training that streams, and for the Hub."""
    encoding: Literal["pcm16", "flac"] = "pcm16"
    """Of the audio in shards: pcm16 is read fastest, flac takes six tenths of the room."""
    part: str | None = None
    """Prepare only this part of the shards, such as 2/4, beside or after the other parts, on this machine or another
    (null = all of them). The last part to be done writes the manifest."""
    push_to_hub: str | None = None
    """Send the finished shards to this data set (owner/name) on the Hugging Face Hub, made private where it is new
    (null = off)."""

    def __post_init__(self) -> None:
        require(8000 <= self.target_sr <= 192_000, f"--target_sr {self.target_sr}: give a rate from 8000 to 192000 Hz.")
        for name in ("max_samples", "min_upvotes", "max_downvotes", "processes"):
            require(getattr(self, name) >= 0, f"--{name} {getattr(self, name)}: give 0 or more.")
        require(
            0.1 <= self.min_duration_s < self.max_duration_s <= 300,
            f"--min_duration_s {self.min_duration_s} --max_duration_s {self.max_duration_s}: give at least 0.1 s, at "
            "most 300 s, and the lesser one first.",
        )
        for name in ("min_loudness_dbfs", "loudness_dbfs"):
            dbfs = getattr(self, name)
            require(dbfs is None or -100 <= dbfs <= 0, f"--{name} {dbfs}: give -100 to 0 dB, or null for off.")
        for name in ("split", "config_name", "revision", "text_column", "audio_column", "speaker_column"):
            require(getattr(self, name) != "", f"--{name} is empty: give a name, or leave it out.")
        self._check_shards()

    @property
    def parts(self) -> int:
        """How many there are; 1 where all is prepared at once."""
        return int(self.part.partition("/")[2]) if self.part else 1

    @property
    def part_number(self) -> int:
        """Of the part to prepare, from 1."""
        return int(self.part.partition("/")[0]) if self.part else 1

    def _check_shards(self) -> None:
        require(0 <= self.shards <= 99_999, f"--shards {self.shards}: give 1 to 99999, or 0 for wavs/.")
        for name in ("part", "push_to_hub"):
            require(getattr(self, name) is None or self.shards > 0, f"--{name} belongs to shards: give --shards too.")
        require(self.shards > 0 or self.encoding == "pcm16", "--encoding belongs to shards: give --shards too.")
        require(
            not self.shards or not self.max_samples,
            f"--max_samples {self.max_samples} --shards {self.shards}: shards hold the whole source. Leave one of them "
            "out (train_vits has a --max_samples, too).",
        )
        if self.part is not None:
            require(
                re.fullmatch(r"\d{1,5}/\d{1,5}", self.part) is not None and 1 <= self.part_number <= self.parts,
                f"--part {self.part}: give its number and how many there are, such as 2/4.",
            )
            require(
                self.shards % self.parts == 0,
                f"--shards {self.shards} --part {self.part}: each part writes as many shards. Give a multiple of "
                f"{self.parts} as --shards, such as {-(-self.shards // self.parts) * self.parts}.",
            )
        require(
            self.push_to_hub is None or HUB_NAME.fullmatch(self.push_to_hub) is not None,
            f"--push_to_hub {self.push_to_hub}: give the name of a data set on the Hub, as owner/name.",
        )
