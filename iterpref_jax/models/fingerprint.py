"""What tells the weights of a folder from others: checksums of all its bytes, of which every process reads a share.

Read by each host alone, a large model on a file server would be read as often as there are hosts, before every start.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
from pathlib import Path

import google_crc32c

from iterpref_jax.models import checkpoint_folder
from iterpref_jax.parallel import distributed

# File servers give one reader a part of what they give to several.
READERS = 8
BLOCK = 1 << 24
# Of each block of a file, what a sample looks at.
PAGE = 1 << 12


def weights_fingerprint(folder: str) -> str:
    """Returns a string that changes with any byte of config.json or of a weight file.

    All processes of a run call this together, on folders with the same files: each reads some of them.
    """
    files = _files(folder)
    mine = files[distributed.process_index() :: distributed.process_count()]
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        found = dict(zip([file.name for file in mine], readers.map(_checked, mine), strict=True))
    for others in distributed.gather("fingerprint", found):
        found |= others
    return " ".join(f"{file.name}:{found.get(file.name, 'not read')}" for file in files)


def sample(folder: str) -> str:
    """Returns a digest of names, sizes and a page of every block: what processes compare that have a copy each."""
    digest = hashlib.sha256()
    for file in _files(folder):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}\n".encode())
        with file.open("rb", buffering=0) as stream:
            for place in range(0, size, BLOCK):
                stream.seek(place)
                digest.update(stream.read(PAGE))
    return digest.hexdigest()[:16]


def _files(folder: str) -> list[Path]:
    config = Path(folder) / "config.json"
    return [*([config] if config.exists() else []), *checkpoint_folder.weight_files(folder)]


def _checked(file: Path) -> str:
    checksum = google_crc32c.Checksum()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            checksum.update(block)
    return f"{file.stat().st_size}:{checksum.hexdigest().decode()}"
