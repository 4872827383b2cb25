"""The command line, after a file of Python that ``$HOOK`` names: for faults inside a process and those it launches."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lightning_app.cli import main

if __name__ == "__main__":
    exec(Path(os.environ["HOOK"]).read_text(encoding="utf-8"))
    sys.exit(main())
