"""Many runs, and machines to make them on: sweeps with Ray Tune, Cloud TPU VMs; no training code."""
