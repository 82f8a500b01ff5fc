"""Run directories: manifests, leases, logs, progress and state."""
