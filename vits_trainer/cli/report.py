"""``report``: a run's folder into one HTML page that can be sent to anybody."""

from pathlib import Path

from vits_trainer.config.tools import ReportConfig
from vits_trainer.tracking.html_report import media_bytes, read_run, render
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import atomic_write


def run(config: ReportConfig) -> int:
    """Reads the run, writes the page, and says where it is and how large.

    Raises:
        ConfigError: the page cannot be written there.
        DataError: the folder is not a run's.
    """
    run_dir = Path(config.run_dir)
    found = read_run(run_dir)
    page = render(found)
    output = Path(config.output) if config.output else run_dir / "report.html"
    if output.is_dir():
        raise ConfigError(f"--output {output}: cannot be written, as it is a folder. Name a file.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, page)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror}). Name another file.") from error
    for sentence in found.missing:
        print(f"  {sentence}")
    size_mb, media_mb = (size / 1e6 for size in (len(page.encode()), media_bytes(found.sentences)))
    print(f"The report: {output} ({size_mb:.1f} MB, of which speech and pictures {media_mb:.1f} MB)")
    return 0
