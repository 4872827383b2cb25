"""The command ``neuroglot``, and ``python -m neuroglot``: what ``python main.py`` is in a checkout."""

import sys

from lightning_app.cli import main

if __name__ == "__main__":
    sys.exit(main())
