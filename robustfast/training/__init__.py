"""Training: configuration and presets, the engine that runs an objective's phases, run folders that survive a kill."""
