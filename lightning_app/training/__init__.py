"""Lightning's module and trainer for this method, validation losses and compilation."""
