"""What people read: text made from plain data."""
