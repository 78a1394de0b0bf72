"""TensorBoard's event file, written at once and in the calling thread.

The libraries that write it do so from a thread of their own: on a full disk that thread ends, its queue fills, and
training waits for ever; tensorboardX imports torch besides, where there is one, which takes seconds.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from iterpref_jax.data import tfrecord

_FIELD = descriptor_pb2.FieldDescriptorProto
# Of tensorflow/core/util/event.proto and tensorflow/core/framework/summary.proto what is written here: name, number,
# type or message. In proto2 a value of 0 is written too.
_MESSAGES = {
    "Value": (("tag", 1, _FIELD.TYPE_STRING), ("simple_value", 2, _FIELD.TYPE_FLOAT)),
    "Summary": (("value", 1, "Value"),),
    "SessionLog": (("status", 1, _FIELD.TYPE_INT32),),
    "Event": (
        ("wall_time", 1, _FIELD.TYPE_DOUBLE),
        ("step", 2, _FIELD.TYPE_INT64),
        ("file_version", 3, _FIELD.TYPE_STRING),
        ("summary", 5, "Summary"),
        ("session_log", 7, "SessionLog"),
    ),
}
_REPEATED = ("value",)
_SESSION_STARTS = 1


def _event_class() -> type[Any]:
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="board", syntax="proto2")
    for message, fields in _MESSAGES.items():
        made = file.message_type.add(name=message)
        for name, number, kind in fields:
            label = _FIELD.LABEL_REPEATED if name in _REPEATED else _FIELD.LABEL_OPTIONAL
            field = made.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".board.{kind}"
            else:
                field.type = kind
    # A pool of its own: TensorFlow, where it is imported, has messages of the same file in the common one.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("board.Event"))


_Event = _event_class()


class Board:
    """A new event file in a folder; TensorBoard hides what older files have from `first_step` on."""

    def __init__(self, folder: Path, *, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}"
        # Unbuffered: a full disk is an error here, not when the file is closed.
        self._file = (folder / name).open("ab", buffering=0)
        self._append(_Event(file_version="brain.Event:2"))
        self._append(_Event(step=first_step, session_log={"status": _SESSION_STARTS}))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the values of a step.

        Raises:
            OSError: a disk that is full or gone.
        """
        values = [{"tag": name, "simple_value": value} for name, value in scalars.items()]
        self._append(_Event(step=step, summary={"value": values}))

    def close(self) -> None:
        self._file.close()

    def _append(self, event: Any) -> None:
        event.wall_time = time.time()
        left = memoryview(tfrecord.frame(event.SerializeToString()))
        while left:
            left = left[self._file.write(left) :]
