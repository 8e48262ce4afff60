"""Ranks that run a collective and close: writes the number of gloo threads before and after to threads-<rank>."""

from pathlib import Path

from vits_trainer.distributed.runtime import Runtime


def threads() -> int:
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)


if __name__ == "__main__":
    runtime = Runtime("fp32", 1)
    runtime.all_gather_object("something")
    before = threads()
    runtime.close()
    Path(f"threads-{runtime.process_index}").write_text(f"{before} {threads()}")
