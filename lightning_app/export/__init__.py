"""What comes out of a run: its delta, and the same change as full weights or as a LoRA, verified by who reads it."""
