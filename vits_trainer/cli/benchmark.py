"""``benchmark``: measures speed on this machine."""

import json
from pathlib import Path

import torch

from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.diagnostics import benchmark, benchmark_data
from vits_trainer.diagnostics.reference_step import reference_update
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.utils.strings import counted


def run(config: BenchmarkConfig) -> int:
    """Prints one row per measurement, and writes them to ``--json`` if given."""
    if config.suite == "update":
        runtime = Runtime(config.precision, 1, device=config.device)
        print(
            f"{runtime.describe()}, {counted(torch.get_num_threads(), 'thread')}, size {config.size}, "
            f"{config.batch_size} clips of {config.clip_s:g} s and {config.tokens} tokens; medians of {config.updates}",
            flush=True,
        )
        results = benchmark.measure_update(config, runtime)
        if config.compare == "reference":
            results |= benchmark.compare_updates(config, runtime, reference_update(config, runtime))
    elif config.suite == "alignment":
        results = benchmark_data.benchmark_alignment(config)
    else:
        results = benchmark_data.benchmark_data_pipeline(config)
    width = max(map(len, results))
    for name, value in results.items():
        print(f"{name:<{width}}  {value:,.6g}")
    if config.json is not None:
        Path(config.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0
