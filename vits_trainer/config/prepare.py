"""Configuration of prepare_data. Imports no torch."""

import re
from dataclasses import dataclass
from typing import Literal

from vits_trainer.config.ranges import check_ranges, limited
from vits_trainer.utils.errors import require

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""owner/name. Relative paths can match it too."""


@dataclass(frozen=True)
class PrepareConfig:
    """Convert recordings and their texts, from files or the Hub, to a folder that train_vits reads."""

    dataset: str = "amedcj/kurmanji-commonvoice"
    """An extracted Common Voice release (validated.tsv with clips/), a folder with a table of files and texts
    (metadata.csv as of LJ Speech, with wavs/, or with a header file_name,text), corrections (NAME.wav with NAME.txt),
    Parquet (a file, a folder of files or a pattern), or the name of a data set on the Hugging Face Hub (owner/name)."""
    split: str = "train"
    """Hub: the split to read, or several such as train+validated. Not used for other sources."""
    config_name: str | None = None
    """Hub: the configuration of the dataset, such as a language (null = its only or default one)."""
    revision: str | None = None
    """Hub: the branch, tag or commit to read (null = the main branch)."""
    text_column: str | None = None
    """Column of the texts: its name, or in a table without a header its number from 1 (null = sentence, else text,
    transcription ...; without a header by content)."""
    audio_column: str | None = None
    """Column of the recordings or their file names (null = audio, else path, file_name ...; without a header by
    content)."""
    speaker_column: str | None = None
    """Column of the speakers (null = client_id, else speaker_id, else speaker ..., if present; without a header by
    content; none = a table has no speakers)."""
    segment: bool = False
    """Cut long recordings, a file or a folder of them, into clips of 1 to 15 s. Their texts come from NAME.srt or
    NAME.vtt next to NAME.wav, from NAME.txt (aligned with --transcribe), or from --transcribe alone."""
    transcribe: str | None = None
    """--segment: recognizer of the language spoken: whisper-tiny.en (English), another whisper-<size>, or the folder or
    Hub name of a model (null = the clips are those of the subtitles, unchecked)."""
    output_dir: str = "training"
    """The prepared folder to write: wavs/, metadata.csv (or shards/, shards.json), rejected.csv, dataset.json."""
    target_sr: int = 16000
    """Sampling rate to write, in Hz. Must be that of the model to train."""
    max_samples: int = limited(0, 0)
    """Stop after this many accepted clips (0 = all)."""
    min_upvotes: int = limited(2, 0)
    """Common Voice: reject clips with fewer up-votes (0 = off)."""
    max_downvotes: int = limited(0, 0)
    """Common Voice: reject clips with more down-votes."""
    trim_silence: bool = False
    """Trim silence at both ends of each clip, except 50 ms. Silence is 40 dB below the loudest 20 ms of the clip."""
    min_duration_s: float = 0.1
    """Reject clips shorter than this after trimming, in seconds (0.1 is the shortest that training supports)."""
    max_duration_s: float = 60.0
    """Reject clips longer than this after trimming, in seconds (at most 300)."""
    min_loudness_dbfs: float | None = None
    """Reject clips whose RMS is below this, in dB relative to full scale, such as -50 (null = off)."""
    loudness_dbfs: float | None = None
    """Scale each clip to this RMS, in dB relative to full scale, such as -23. Clips whose peak would reach full scale
    are scaled less (null = off: keep the level of each clip)."""
    check_texts: bool = True
    """Refuse data sets where the texts of most clips cannot be those of their recordings: far too short for them, or
    the same again and again (false = only report it)."""
    drop: str | None = None
    """List of clips to leave out: suspicious.csv of check_data, the list that its page saves, or a text file with a
    name of the source per line (null = none). The other clips keep their names."""
    processes: int = limited(0, 0, 1024)
    """Worker processes (0 = one per core)."""
    shards: int = 0
    """Write this many shards/*.parquet with a manifest shards.json instead of wavs/ (0 = wavs/). Use it for large
    datasets, streaming training and the Hub."""
    encoding: Literal["pcm16", "flac"] = "pcm16"
    """Audio encoding in shards: pcm16 is the fastest to read, flac needs 60 % of the space."""
    part: str | None = None
    """Prepare only this part of the shards, such as 2/4. Parts may run one after another or at the same time, also on
    different machines; the last one to finish writes the manifest (null = prepare all)."""
    push_to_hub: str | None = None
    """Upload the finished shards to this dataset on the Hugging Face Hub (owner/name), which is created as private if
    it does not exist (null = off)."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(8000 <= self.target_sr <= 192_000, f"--target_sr {self.target_sr}: must be between 8000 and 192000 Hz.")
        require(
            0.1 <= self.min_duration_s < self.max_duration_s <= 300,
            f"--min_duration_s {self.min_duration_s} --max_duration_s {self.max_duration_s}: must be between 0.1 and "
            "300 seconds, and the minimum below the maximum.",
        )
        for name in ("min_loudness_dbfs", "loudness_dbfs"):
            dbfs = getattr(self, name)
            require(
                dbfs is None or -100 <= dbfs <= 0, f"--{name} {dbfs}: must be between -100 and 0 dB, or null (off)."
            )
        for name in ("split", "config_name", "revision", "text_column", "audio_column", "speaker_column", "drop"):
            require(getattr(self, name) != "", f"--{name} is empty: give a name, or leave the flag out.")
        require(self.transcribe is None or self.segment, "--transcribe requires --segment true.")
        require(self.transcribe != "", "--transcribe is empty: give a name, or leave the flag out.")
        self._check_shards()

    @property
    def parts(self) -> int:
        """Number of parts; 1 if everything is prepared at once."""
        return int(self.part.partition("/")[2]) if self.part else 1

    @property
    def part_number(self) -> int:
        """Number of the part to prepare, starting at 1."""
        return int(self.part.partition("/")[0]) if self.part else 1

    def _check_shards(self) -> None:
        require(0 <= self.shards <= 99_999, f"--shards {self.shards}: must be between 1 and 99999, or 0 for wavs/.")
        for name in ("part", "push_to_hub"):
            require(getattr(self, name) is None or self.shards > 0, f"--{name} requires --shards.")
        require(self.shards > 0 or self.encoding == "pcm16", f"--encoding {self.encoding} requires --shards.")
        require(
            not self.shards or not self.max_samples,
            f"--max_samples {self.max_samples} and --shards {self.shards} exclude each other: shards contain the whole "
            "source. Leave one of them out (train_vits has --max_samples, too).",
        )
        if self.part is not None:
            require(
                re.fullmatch(r"\d{1,5}/\d{1,5}", self.part) is not None and 1 <= self.part_number <= self.parts,
                f"--part {self.part}: must be its number and the number of parts, such as 2/4.",
            )
            require(
                self.shards % self.parts == 0,
                f"--shards {self.shards} --part {self.part}: all parts must write the same number of shards. Set "
                f"--shards to a multiple of {self.parts}, such as {-(-self.shards // self.parts) * self.parts}.",
            )
        require(
            self.push_to_hub is None or HUB_NAME.fullmatch(self.push_to_hub) is not None,
            f"--push_to_hub {self.push_to_hub}: must be the name of a dataset on the Hub, as owner/name.",
        )
