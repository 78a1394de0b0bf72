"""A git repository, read by plumbing commands: nothing is checked out, no hook, filter or configured program runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import subprocess
from collections.abc import Iterator

from iterpref_jax.errors import UserError

_NOTHING = os.devnull
# A repository of somebody else's may name programs in its configuration; none of these commands runs one, and what
# could is switched off nevertheless.
_FLAGS = (
    "-c",
    "safe.directory=*",
    "-c",
    f"core.hooksPath={_NOTHING}",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "protocol.allow=never",
)
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": _NOTHING,
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "LC_ALL": "C",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One file of one commit: `status` "A", "M", "R" or "D"; blobs and paths before and after (R: they differ)."""

    status: str
    old_blob: str
    new_blob: str
    old_path: str
    path: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit with one parent and what it changed; `seconds` since 1970 when it was made."""

    name: str
    seconds: int
    subject: str
    changes: tuple[Change, ...]


class Repository:
    """Reads one repository; made by `open_repository`."""

    def __init__(self, path: str):
        self.path = path
        self._blobs = _start(path, "cat-file", "--batch")

    def close(self) -> None:
        assert self._blobs.stdin is not None
        assert self._blobs.stdout is not None
        self._blobs.stdin.close()
        self._blobs.stdout.close()
        self._blobs.wait()

    def commits(self) -> Iterator[Commit]:
        """Yields the commits that HEAD reaches and that change Python, parents first, without merges and roots."""
        chosen = ("--reverse", "--topo-order", "--full-history", "--min-parents=1", "--no-merges")
        listed = _output(self.path, "rev-list", *chosen, "HEAD", "--", "*.py")
        for name in listed.decode().split():
            yield self._commit(name)

    def paths(self, commit: str) -> list[str]:
        """Returns the paths of all files at a commit."""
        return _texts(_output(self.path, "ls-tree", "-r", "-z", "--name-only", commit))

    def text(self, name: str) -> str | None:
        """Returns a blob (by its hash or as `COMMIT:PATH`) as text, or None if it is absent or not UTF-8."""
        kind, data = self._object(name)
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode() if kind == b"blob" else None
        return None

    def _object(self, name: str) -> tuple[bytes, bytes]:
        stdin, stdout = self._blobs.stdin, self._blobs.stdout
        assert stdin is not None
        assert stdout is not None
        if "\n" in name:
            return b"", b""
        stdin.write(f"{name}\n".encode())
        stdin.flush()
        words = stdout.readline().split()
        # "NAME missing" and "NAME ambiguous"; names may hold spaces.
        if len(words) != 3 or not words[2].isdigit():
            return b"", b""
        return words[1], stdout.read(int(words[2]) + 1)[:-1]

    def _commit(self, name: str) -> Commit:
        header = self._object(name)[1].decode("utf-8", "replace")
        head, _, message = header.partition("\n\n")
        committer = next(line for line in head.splitlines() if line.startswith("committer "))
        plain = ("-r", "-z", "-M", "--no-commit-id", "--no-ext-diff", "--no-textconv")
        return Commit(
            name=name,
            seconds=int(committer.split()[-2]),
            subject=message.lstrip("\n").split("\n", 1)[0],
            changes=tuple(_changes(_texts(_output(self.path, "diff-tree", *plain, name)))),
        )


@contextlib.contextmanager
def open_repository(path: str) -> Iterator[Repository]:
    """Opens a repository for a `with` block; raises UserError where there is none, or no git."""
    if not is_repository(path):
        raise UserError(f"{path}: no git repository; name the folder that holds .git, or a bare repository")
    repository = Repository(path)
    try:
        yield repository
    finally:
        repository.close()


def is_repository(path: str) -> bool:
    """Whether a folder is a repository, its work tree or a bare one."""
    folder = pathlib.Path(path)
    return (folder / ".git").exists() or ((folder / "HEAD").is_file() and (folder / "objects").is_dir())


def head(path: str) -> str:
    """Returns the hash of the commit that HEAD names."""
    return _output(path, "rev-parse", "--verify", "HEAD").decode().strip()


def _changes(fields: list[str]) -> Iterator[Change]:
    rest = iter(fields)
    for about in rest:
        # ":100644 100644 OLD NEW M", then the path; for R the old and the new one.
        _, mode, old_blob, new_blob, status = about.split(" ")
        old_path = next(rest)
        path = next(rest) if status[0] in "RC" else old_path
        # Links and submodules are no programs.
        if mode.startswith("100") or status == "D":
            yield Change(status=status[0], old_blob=old_blob, new_blob=new_blob, old_path=old_path, path=path)


def _texts(output: bytes) -> list[str]:
    return output.decode("utf-8", "backslashreplace").split("\0")[:-1]


def _command(path: str, arguments: tuple[str, ...]) -> list[str]:
    return ["git", "--no-pager", *_FLAGS, "-C", path, *arguments]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | _ENVIRONMENT


def _start(path: str, *arguments: str) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            _command(path, arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()
        )
    except FileNotFoundError as error:
        raise UserError("git is not installed; this form reads repositories with it") from error


def _output(path: str, *arguments: str) -> bytes:
    try:
        return subprocess.run(
            _command(path, arguments), stdin=subprocess.DEVNULL, capture_output=True, env=_environment(), check=True
        ).stdout
    except FileNotFoundError as error:
        raise UserError("git is not installed; this form reads repositories with it") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip()
        raise UserError(
            f"{path}: git {arguments[0]} failed: {said}; is the repository whole, with a commit?"
        ) from error
