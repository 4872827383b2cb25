"""The base model: loading it, its gated FFNs, its loss, and the arithmetic of a training step."""
