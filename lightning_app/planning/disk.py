"""How much of a base is still to be downloaded, and whether the disks have room."""

import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import DryRunError, HfHubHTTPError


def look_at_disks(*needs: tuple[Path, int]) -> tuple[int, list[str]]:
    """Returns the least that is free on any disk of these folders, and the disks with less than is needed on them."""
    free: dict[int, tuple[int, Path]] = {}
    wanted: dict[int, int] = {}
    for place, needed in needs:
        there = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
        disk = there.stat().st_dev
        free[disk] = (shutil.disk_usage(there).free, there)
        wanted[disk] = wanted.get(disk, 0) + needed
    too_small = [str(there) for disk, (left, there) in free.items() if wanted[disk] > left]
    return min(left for left, _ in free.values()), too_small


def base_size(name: str, revision: str | None) -> tuple[int | None, int | None]:
    """Returns the bytes of a base's files and how many of them are still to be downloaded; None where unknown."""
    if Path(name).is_dir():
        return sum(path.stat().st_size for path in Path(name).glob("*.safetensors")), 0
    try:
        files = snapshot_download(
            name, revision=revision, dry_run=True, allow_patterns=["*.safetensors", "*.json", "tokenizer*"],
            ignore_patterns=["consolidated*", "*/*"],
        )  # fmt: skip
    except (DryRunError, HfHubHTTPError, OSError):
        return None, None
    return sum(f.file_size or 0 for f in files), sum(f.file_size or 0 for f in files if f.will_download)
