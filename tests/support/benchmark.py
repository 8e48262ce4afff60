"""Settings of a small benchmark."""

SMALL = {"size": "tiny", "batch_size": 2, "clip_s": 2.0, "tokens": 40, "updates": 1}
