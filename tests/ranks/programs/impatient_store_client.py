"""``vits-trainer`` that retries a failing object store twice, with short waits."""

import s3fs

from vits_trainer.cli.main import entry_point
from vits_trainer.data import remote_shards

remote_shards.RETRY_WAITS_S = (0.1, 0.1)
s3fs.S3FileSystem.retries = 1
if __name__ == "__main__":
    entry_point()
