"""Text to tokens: sources, token cache, chunking, order, and the LightningDataModule that serves them."""
