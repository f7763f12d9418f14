"""What a person runs: train, evaluate, generate, report. It turns configs into the objects of `aevb` and files."""
