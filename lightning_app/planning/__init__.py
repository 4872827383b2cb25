"""What a run takes, and what is refused, before anything expensive starts."""
