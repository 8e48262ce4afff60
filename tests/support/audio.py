"""Synthetic clips and data sets."""

import http.server
import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

RELEASE_HEADER = ("client_id", "path", "sentence_id", "sentence", "up_votes", "down_votes", "age", "locale")


def voice(duration_s: float, rate_hz: int, pitch_hz: float = 150.0) -> NDArray[np.float32]:
    """Returns (T,): ten harmonics with a syllable-like envelope and a peak of 0.5."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    tone = sum(np.sin(2 * np.pi * pitch_hz * k * time_s) / k for k in range(1, 11))
    shaped = tone * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time_s))
    return (0.5 * shaped / np.abs(shaped).max()).astype(np.float32)


def encode(samples: NDArray[np.float32], rate_hz: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """Returns the content of an audio file; ``samples`` is (T,) or (T, channels)."""
    content = io.BytesIO()
    sf.write(content, samples, rate_hz, format=kind, subtype=subtype)
    return content.getvalue()


@dataclass(frozen=True)
class Utterance:
    """One row of a synthetic Common Voice release."""

    path: str
    sentence: str
    content: bytes | None
    up_votes: int = 2
    down_votes: int = 0
    client_id: str = "speaker-a"


def good_utterances(count: int, duration_s: float = 0.6) -> list[Utterance]:
    """Returns clips that are accepted, each with a different pitch."""
    return [
        Utterance(f"good_{n}.mp3", f"Silav {n}.", encode(voice(duration_s, 32000, 100 + 20 * n), 32000, "MP3"))
        for n in range(count)
    ]


def mixed_utterances() -> list[Utterance]:
    """Returns three clips that are accepted, and one for each reason to reject a clip of a release."""
    first, second = good_utterances(2)
    stereo = np.stack([voice(0.6, 48000, 110), voice(0.6, 48000, 220)], axis=1)
    return [
        replace(first, path="unliked.mp3", up_votes=1),
        first,
        replace(first, path="disliked.mp3", down_votes=1),
        replace(first, path="corrupt.mp3", content=b"no MP3 at all " * 50),
        replace(first, path="empty.mp3", sentence=" \u2028 "),
        Utterance("stereo.mp3", "Du deng, yek.", encode(stereo, 48000, "MP3")),
        Utterance("short.mp3", "A", encode(voice(0.05, 32000), 32000, "MP3")),
        replace(first, path="wordy.mp3", sentence="pirr gotin " * 10),
        replace(first, path="absent.mp3", content=None),
        second,
    ]


MIXED_REJECTIONS = {
    "unliked.mp3": "too-few-upvotes",
    "disliked.mp3": "too-many-downvotes",
    "corrupt.mp3": "unreadable-audio",
    "empty.mp3": "empty-text",
    "short.mp3": "too-short",
    "wordy.mp3": "text-too-long",
    "absent.mp3": "missing-file",
}


def write_release(folder: Path, utterances: Sequence[Utterance]) -> Path:
    """Writes an extracted Common Voice release: validated.tsv and clips/."""
    (folder / "clips").mkdir(parents=True)
    lines = ["\t".join(RELEASE_HEADER)]
    for n, utterance in enumerate(utterances):
        row = (utterance.client_id, utterance.path, f"s{n}", utterance.sentence)
        lines.append("\t".join([*row, str(utterance.up_votes), str(utterance.down_votes), "", "kmr"]))
        if utterance.content is not None:
            (folder / "clips" / utterance.path).write_bytes(utterance.content)
    (folder / "validated.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def write_parquet(file: Path, utterances: Sequence[Utterance]) -> Path:
    """Writes the clips as Parquet, as ``datasets`` saves a column with an ``Audio`` feature."""
    import datasets

    columns = {
        "client_id": [u.client_id for u in utterances],
        "path": [u.path for u in utterances],
        "audio": [u.content and {"bytes": u.content, "path": u.path} for u in utterances],
        "sentence": [u.sentence for u in utterances],
        "up_votes": [u.up_votes for u in utterances],
        "down_votes": [u.down_votes for u in utterances],
    }
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = {
        "client_id": datasets.Value("string"),
        "path": datasets.Value("string"),
        "audio": struct,
        "sentence": datasets.Value("string"),
        "up_votes": datasets.Value("int64"),
        "down_votes": datasets.Value("int64"),
    }
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.cast_column("audio", datasets.Audio()).to_parquet(str(file))
    return file


def write_lj_speech(folder: Path, lines: Sequence[str], clips: dict[str, bytes]) -> Path:
    """Writes metadata.csv with ``lines``, and ``clips`` by path within the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    for path, content in clips.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


# A local Hub server, for HF_ENDPOINT

HUB_COMMIT = "c0" * 20


class _HubAnswers(http.server.BaseHTTPRequestHandler):
    """The Hub's HTTP API for data set owner/name, stored in ``repository``, and three others."""

    repository: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        revisions = [f"/api/datasets/owner/name{end}" for end in ("", "/revision/v1", f"/revision/{HUB_COMMIT}")]
        info = {"id": "owner/name", "sha": HUB_COMMIT, "private": False, "tags": [], "siblings": []}
        if path == "/api/datasets/owner/gated/auth-check":
            self._answer(403, X_Error_Code="GatedRepo")
        elif path in ("/api/datasets/owner/gated", "/api/datasets/owner/name/auth-check", *revisions):
            self._answer(200, info)
        elif path.startswith("/api/datasets/owner/name/revision/"):
            self._answer(404, X_Error_Code="RevisionNotFound")
        elif path.startswith(tree := f"/api/datasets/owner/name/tree/{HUB_COMMIT}"):
            self._tree(path.removeprefix(tree).strip("/"))
        elif path.startswith(files := f"/datasets/owner/name/resolve/{HUB_COMMIT}/"):
            self._file(self.repository / path.removeprefix(files))
        else:
            self._answer(404, X_Error_Code="RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _tree(self, folder: str) -> None:
        entries = []
        for path in sorted((self.repository / folder).glob("**/*" if "recursive=true" in self.path else "*")):
            entry = {"type": "directory", "path": path.relative_to(self.repository).as_posix(), "oid": path.name}
            entries.append({**entry, "type": "file", "size": path.stat().st_size} if path.is_file() else entry)
        if (self.repository / folder).is_dir():
            self._answer(200, entries)
        else:
            self._answer(404, X_Error_Code="EntryNotFound")

    def _file(self, file: Path) -> None:
        if not file.is_file():
            self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=HUB_COMMIT)
            return
        content, byte_range = file.read_bytes(), self.headers.get("Range")
        headers = {"ETag": f'"{file.name}"', "X_Repo_Commit": HUB_COMMIT, "Accept_Ranges": "bytes"}
        if byte_range:
            first, last = byte_range.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1 if last else None]
        self._answer(206 if byte_range else 200, content, **headers)


@contextmanager
def loopback_hub(repository: Path) -> Iterator[str]:
    """Serves ``repository`` as data set owner/name; yields the server's address."""
    answers = type("Answers", (_HubAnswers,), {"repository": repository})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# Replacements of preparation.convert_clip; worker processes import them by name.


def killed_worker(*_: object) -> int:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def killed_by_one_clip(audio: object, tokens: int, config: object, wav: Path) -> object:
    """Dies of the clips named c1, as a decoder that crashes."""
    import os
    import signal

    from vits_trainer.data.preparation.workers import convert_clip

    if getattr(audio, "stem", "") == "c1":
        os.kill(os.getpid(), signal.SIGSEGV)
    return convert_clip(audio, tokens, config, wav)


def full_disk(audio: object, tokens: int, target_rate_hz: int, wav: Path) -> int:
    import errno

    raise OSError(errno.ENOSPC, "No space left on device", str(wav))


def without_torch(audio: object, tokens: int, target_rate_hz: int, wav: Path) -> tuple[int, str]:
    """Writes the heavy packages that the worker has imported, instead of a clip."""
    import sys

    wav.write_text(" ".join(sorted({"torch", "datasets", "transformers"} & set(sys.modules))))
    return 1, ""


def noted_clip(audio: object, tokens: int, config: object) -> tuple[bytes, int]:
    """Appends a byte to a file for each converted clip."""
    import os

    with Path(os.environ["NOTED_CLIPS"]).open("ab") as file:
        file.write(b".")
    return bytes(2 * 8000), 8000
