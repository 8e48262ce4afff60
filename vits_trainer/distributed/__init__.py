"""Processes and devices: launch checks, runtime, heartbeats, stragglers, watchdog, shutdown."""
