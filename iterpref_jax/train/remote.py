"""Run folders in a bucket: which there are, and how they are read."""

from __future__ import annotations

import fsspec.config
from etils import epath

from iterpref_jax.errors import UserError

# What Orbax writes arrays to by itself.
SCHEMES = ("gs://",)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket, and no folder of this machine's file systems."""
    return "://" in str(path)


def check_scheme(workdir: str) -> None:
    """Prepares for a folder in a bucket.

    Raises:
        UserError: a kind of bucket that checkpoints cannot be written to, or whose package is missing.
    """
    if not is_remote(workdir):
        return
    if not workdir.startswith(SCHEMES):
        raise UserError(
            f"--workdir={workdir}: checkpoints are written to local or mounted folders and to gs:// buckets; mount "
            "this one (rclone, mountpoint-s3) and give the mounted folder"
        )
    # Listings are kept for good otherwise, and show neither what other hosts nor what TensorStore writes.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        epath.Path(workdir).exists()
    except ImportError as error:
        raise UserError(f"--workdir={workdir} needs a package: pip install 'iterpref_jax[gcs]' ({error})") from error
