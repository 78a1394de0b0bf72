"""What the command line makes of errors that are the user's, the disk's or ours."""

import errno

import pytest

from iterpref_jax import __main__
from iterpref_jax.cli import build


def failing(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Error writing file: No space left on device [source locations=...]"),
    ],
)
def test_a_full_disk_is_a_message_that_says_how_to_go_on(monkeypatch, capsys, error):
    monkeypatch.setattr(build, "main", failing(error))
    assert __main__.main(["build"]) == 1
    assert "no space left on the disk" in capsys.readouterr().err


def test_a_full_disk_deep_inside_a_library_is_found(monkeypatch, capsys):
    try:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    except OSError as cause:
        wrapped = RuntimeError("background save failed")
        wrapped.__cause__ = cause
    monkeypatch.setattr(build, "main", failing(wrapped))
    assert __main__.main(["build"]) == 1


def test_a_path_that_cannot_be_used_is_a_message(monkeypatch, capsys):
    monkeypatch.setattr(build, "main", failing(PermissionError(errno.EACCES, "Permission denied", "/there/data")))
    assert __main__.main(["build"]) == 1
    assert "/there/data: Permission denied; check the path" in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(build, "main", failing(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        __main__.main(["build"])
