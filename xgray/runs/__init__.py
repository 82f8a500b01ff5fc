"""The folder of a run: manifests, lease, logs, progress, missing rows and state."""
