"""Neuroglot's command line: ``python main.py fit --config cy.yaml``."""

import sys

from lightning_app.cli import main

if __name__ == "__main__":
    sys.exit(main())
