"""Tables and pictures of what `lightning_app.analysis` finds, for the terminal, for files and for pages."""
