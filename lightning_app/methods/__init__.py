"""What of a base is trained, and how: one protocol, and a file for each method."""
