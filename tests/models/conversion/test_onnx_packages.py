"""Optional packages for ONNX."""

import re
from pathlib import Path

import pytest

from vits_trainer.models.conversion import onnx_packages
from vits_trainer.utils.errors import InstallationError, ModelError
from vits_trainer.utils.installation import install_command


def test_missing_packages_are_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_packages, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(InstallationError, match=re.escape(f"needs onnxscript: {install_command('onnx')}")):
        onnx_packages.require_packages()
    onnx_packages.require_packages("onnx", "onnxruntime")


def test_damaged_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "voice.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match="onnxruntime cannot load it"):
        onnx_packages.open_session(tmp_path / "voice.onnx")
