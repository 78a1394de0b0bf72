"""TensorBoard's event file, written at once and in the calling thread.

tensorboardX writes from a thread of its own: on a full disk that thread ends, its queue fills, and training waits for
ever. Of the package only the messages are used here.
"""

# Protobuf makes its messages when it is imported: no type checker can know them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto import event_pb2, summary_pb2

from iterpref_jax.data import tfrecord


class Board:
    """A new event file in a folder; TensorBoard hides what older files have from `first_step` on."""

    def __init__(self, folder: Path, *, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}"
        # Unbuffered: a full disk is an error here, not when the file is closed.
        self._file = (folder / name).open("ab", buffering=0)
        self._append(event_pb2.Event(file_version="brain.Event:2"))
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._append(event_pb2.Event(step=first_step, session_log=started))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the values of a step.

        Raises:
            OSError: a disk that is full or gone.
        """
        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._append(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _append(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        left = memoryview(tfrecord.frame(event.SerializeToString()))
        while left:
            left = left[self._file.write(left) :]
