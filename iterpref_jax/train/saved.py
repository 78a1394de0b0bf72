"""Which checkpoints lie in a folder, read without Orbax."""

from __future__ import annotations

from etils import epath

# Orbax renames a whole checkpoint on a disk; in a bucket, where nothing can be renamed at once, this file comes last.
_WHOLE = "commit_success.txt"


def steps_in(folder: epath.Path) -> list[int]:
    """Returns the steps of the checkpoints in a run's folder of checkpoints, oldest first.

    One that was being saved when the run ended is none; one that has lost files since then is still named.
    """
    if not folder.exists():  # an empty folder of a bucket does not exist
        return []
    found = [path for path in folder.iterdir() if path.name.isdigit()]
    if "://" in str(folder):
        found = [path for path in found if (path / _WHOLE).exists()]
    return sorted(int(path.name) for path in found)
