"""One module a command: wiring only. Each has ``run(config)`` and returns the exit code."""
