"""The command that a message gives for a missing extra, by how the package was installed."""

import json
from pathlib import Path

import pytest

from vits_trainer.utils.installation import install_command

REPOSITORY = "https://example.org/someone/vits_trainer"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (
            {"url": "file:///home/me/my%20voices", "dir_info": {"editable": True}},
            "pip install -e '/home/me/my voices[text]'",
        ),
        ({"url": "file:///src", "dir_info": {}}, "pip install '/src[text]'"),
        (
            {"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "1a2b"}},
            f"pip install 'vits-trainer[text] @ git+{REPOSITORY}'",
        ),
        (
            {"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "1a2b", "requested_revision": "v1"}},
            f"pip install 'vits-trainer[text] @ git+{REPOSITORY}@v1'",
        ),
        (
            {"url": f"{REPOSITORY}.zip", "archive_info": {}},
            f"pip install 'vits-trainer[text] @ {REPOSITORY}.zip'",
        ),
        (None, "pip install '.[text]' in the source folder"),
    ],
)
def test_command_installs_from_the_same_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: dict | None, command: str
) -> None:
    record = tmp_path / "vits_trainer-0.1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: vits-trainer\nVersion: 0.1.0\n")
    if origin is not None:
        (record / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert install_command("text") == command


def test_source_folder_without_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert install_command("onnx") == "pip install '.[onnx]' in the source folder"
