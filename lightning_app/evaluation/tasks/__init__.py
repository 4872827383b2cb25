"""Task files in the harness's form, and the functions that they name."""
