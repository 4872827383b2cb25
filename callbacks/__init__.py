"""What happens around training: profiling, checkpoints, the console and the run folder."""
