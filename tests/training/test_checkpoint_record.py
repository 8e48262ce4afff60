"""Records of checkpoints that are damaged, incomplete or somebody else's."""

import json
from pathlib import Path

import pytest

from tests.support.checkpoints import write_checkpoint
from vits_trainer.training.checkpoint_record import best_checkpoint, read_record, verify_checkpoint
from vits_trainer.utils.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint-3")


def change(path: Path, name: str, value: object) -> None:
    """Sets the field at a dotted path of a JSON file."""
    content = json.loads(path.read_text())
    *parents, last = name.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    path.write_text(json.dumps(content))


def test_intact_checkpoint_is_read(folder: Path) -> None:
    verify_checkpoint(folder)
    record = read_record(folder)
    assert (record.state.update, record.plan["total_updates"], record.fingerprint.run_name()) == (3, 9, "run")


def test_manifest_that_does_not_list_a_file_is_damage(folder: Path) -> None:
    manifest = folder / "manifest.json"
    good = manifest.read_text()
    for name in json.loads(good)["files"]:
        content = json.loads(good)
        del content["files"][name]
        manifest.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=f"does not list {name}"):
            verify_checkpoint(folder)
        (folder / name).rename(folder / "away")
        with pytest.raises(CheckpointError, match="is damaged"):
            verify_checkpoint(folder)
        (folder / "away").rename(folder / name)
    manifest.write_text('{"files": {}}')
    with pytest.raises(CheckpointError, match="does not list"):
        verify_checkpoint(folder)


def test_files_of_others_are_no_damage(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    verify_checkpoint(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "voice/../../x", "", "."])
def test_manifest_does_not_lead_out_of_the_folder(folder: Path, name: str) -> None:
    change(folder / "manifest.json", "files", {name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 1, "another version"),
        ("format", "5", "field format: expected int"),
        ("state", [], "field state: expected object"),
        ("state.update", 4, "state.update: 4 is not that of the folder's name"),
        ("state.update", -1, "state.update: expected int >= 0"),
        ("state.selection.score", "x", "state.selection.score"),
        ("plan.total_updates", "x", "plan"),
        ("losses", [{"sums": {"a": "words"}, "weights": {}}], r"losses\[0\]\.sums"),
        ("fingerprint", None, "fingerprint: expected object"),
    ],
)  # fmt: skip
def test_other_content_of_the_state_is_named(folder: Path, field: str, value: object, message: str) -> None:
    change(folder / "state.json", field, value)
    with pytest.raises(CheckpointError, match=message):
        read_record(folder)


@pytest.mark.parametrize("name", ["../../../../tmp/x", "..", "a/b", "a" * 300, "", 5, None, "a\nb", "\0"])
def test_run_name_of_a_checkpoint_stays_one_folder(folder: Path, name: object) -> None:
    change(folder / "state.json", "fingerprint.must_match.run_name", name)
    with pytest.raises(CheckpointError, match=r"run_name .* must be one folder name"):
        read_record(folder).fingerprint.run_name()


@pytest.mark.parametrize("content", ["[]", "null", '"x"', "{}", '{"checkpoint": "../x"}', '{"checkpoint": 5}', "["])
def test_best_checkpoint_is_named_or_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"best\.json"):
        best_checkpoint(tmp_path)
    (tmp_path / "best.json").write_text('{"checkpoint": "checkpoint-12"}')
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoint-12"
