"""10,000 hours on 64 GPUs, computed from measured values and named assumptions; docs/scaling.md has a summary.

python -m experiments.capacity_plan
"""

HOURS, GPUS, GPUS_A_HOST = 10_000, 64, 8
CLIP_S = 5.0
SHARDS = 4_096
RATE_HZ = 16_000

# Measured on this project's machine (docs/benchmarks.md); FLAC on LJ Speech and a German speaker.
GROUP_SAMPLES = 2**20
FLAC_OF_PCM = 0.59
FOOTER_BYTES_A_GROUP = 339
ORDER_S_AN_EPOCH = 0.15
GRADIENT_VALUES = 83.0e6
CHECKPOINT_GIB = 0.93
CLIPS_PER_S_OF_A_READER = 2_800

# Assumed, because no GPU could be measured: GPU throughput (published runs reach 15 to 70) and the machines.
CLIPS_PER_S_OF_A_GPU = {16: 300, 64: 500}
NETWORK_BYTES_PER_S_OF_A_HOST = 50e9
STORE_REQUESTS_PER_S_OF_A_PREFIX = 5_500


def rows() -> list[tuple[str, str, str]]:
    """Rows of (quantity, computation, value)."""
    clips = HOURS * 3600 / CLIP_S
    pcm_bytes = HOURS * 3600 * RATE_HZ * 2
    groups = HOURS * 3600 * RATE_HZ / GROUP_SAMPLES
    found = [
        ("clips", f"{HOURS:,} h / {CLIP_S:g} s", f"{clips / 1e6:.1f} million"),
        ("bytes as PCM, as FLAC", f"32 kB/s; x {FLAC_OF_PCM}", (f"{pcm_bytes / 1e12:.2f} TB, "
         f"{pcm_bytes * FLAC_OF_PCM / 1e12:.2f} TB")),
        ("row groups (one request each)", "2^20 samples, 65.5 s", f"{groups:,.0f}"),
        (f"each of {SHARDS:,} shards", "", (f"{pcm_bytes / SHARDS / 1e6:.0f} MB, {groups / SHARDS:.0f} row groups, "
         f"{groups / SHARDS * FOOTER_BYTES_A_GROUP / 1e3:.0f} kB of metadata")),
        ("ordering an epoch, per rank", "measured", f"{ORDER_S_AN_EPOCH} s, 20 MiB"),
        ("memory for clip accounting, per rank", "3 x 4 bytes per clip", f"{clips * 12 / 2**20:.0f} MiB"),
        ("gradients of both networks", f"{GRADIENT_VALUES / 1e6:.0f} M float32",
         f"{GRADIENT_VALUES * 4 / 1e6:.0f} MB"),
    ]  # fmt: skip
    exchange_s = 2 * GRADIENT_VALUES * 4 * (GPUS - 1) / GPUS / NETWORK_BYTES_PER_S_OF_A_HOST
    found.append(("gradient exchange between hosts", "ring, 2 (N-1)/N, 50 GB/s per host", f"{exchange_s * 1e3:.0f} ms"))
    for batch, clips_per_s in CLIPS_PER_S_OF_A_GPU.items():
        update_s = batch / clips_per_s
        all_clips_per_s = clips_per_s * GPUS
        bytes_per_s = all_clips_per_s * CLIP_S * RATE_HZ * 2
        found += [
            (f"**{batch} clips per GPU:** clips per update, updates per epoch", f"x {GPUS}",
             f"{batch * GPUS:,}, {clips / (batch * GPUS):,.0f}"),
            ("one update", f"at {clips_per_s} clips/s per GPU (assumed)", f"{update_s * 1e3:.0f} ms"),
            ("gradient exchange without overlap", "", f"{exchange_s / update_s:.0%} of an update"),
            ("one epoch", "", f"{clips / all_clips_per_s / 60:.0f} min"),
            ("reads from the store, total", "PCM", (f"{bytes_per_s / 1e9:.1f} GB/s, "
             f"{bytes_per_s / GROUP_SAMPLES / 2:,.0f} requests/s")),
            (f"share of S3's limit of {STORE_REQUESTS_PER_S_OF_A_PREFIX:,} requests/s per prefix", "",
             f"{bytes_per_s / GROUP_SAMPLES / 2 / STORE_REQUESTS_PER_S_OF_A_PREFIX:.0%}"),
            ("share of one reader process's throughput", f"{CLIPS_PER_S_OF_A_READER:,} clips/s measured",
             f"{clips_per_s / CLIPS_PER_S_OF_A_READER:.0%}"),
            ("windows in memory, per GPU", f"4 substreams x 2 x 8 x {batch} clips",
             f"{4 * 2 * 8 * batch * CLIP_S * RATE_HZ * 2 / 2**20:.0f} MiB"),
        ]  # fmt: skip
    found.append(("one checkpoint", "weights and two moments, float32", f"{CHECKPOINT_GIB} GiB, from rank 0"))
    return found


def table() -> str:
    """The estimate as a Markdown table."""
    lines = ["| quantity | computation | value |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows())])


if __name__ == "__main__":
    print(table())
