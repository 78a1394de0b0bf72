"""Runs one program inside the child process and reports how it went. Standard library only; no import of ours.

The parent starts this file with a bare interpreter and sends one request on standard input. Two lines come back on a
private pipe, each stamped with the token of the request: `ready` (what follows is the program's doing, not ours) and
`done` (the verdict). The token lives in locals of this file only: a program that hunts for it through frames or the
garbage collector finds it, and no judge in the same process can prevent that.

A line is tab-separated fields in `unicode_escape`: unlike `json` or `pickle` it costs no import and is safe to read.
"""

from __future__ import annotations

import builtins
import os
import resource
import sys

SETUP, CODE, TESTS = "<setup>", "<code>", "<tests>"
TAIL_CHARS = 4096
MESSAGE_CHARS = 1000
MAX_FRAMES = 40
# Room that the report gets on top of the program's memory, so that "out of memory" can still be said.
REPORT_BYTES = 64 << 20
ONLY_AST = 0x400
LOOK = "__looked__"
# Items of containers that are looked at: in one value, and in a whole run.
LOOK_ITEMS, LOOK_ALL = 1_000, 200_000
# Types whose values equal what they should; by id, for a class may say itself what it equals.
PLAIN = {id(kind) for kind in (int, float, complex, str, bytes, bool, type(None))}
CONTAINERS = (list, tuple, set, frozenset, dict)
BARE = {id(kind) for kind in CONTAINERS}
# Where honest tests choose the order in which they run.
FREE = {"sortTestMethodsUsing"}
DISK_FULL = {27, 28, 122}  # EFBIG, ENOSPC, EDQUOT


def encode(fields: list[str]) -> bytes:
    return b"\t".join(field.encode("unicode_escape") for field in fields) + b"\n"


def decode(line: bytes) -> list[str]:
    return [field.decode("unicode_escape") for field in line.rstrip(b"\n").split(b"\t")]


def main() -> None:
    token, fd, style, cpu_s, memory, file_bytes, processes, paths, setup, code, tests, *rest = decode(_read_all(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.set_inheritable(int(fd), False)
    sys.path.extend(path for path in paths.split(os.pathsep) if path)
    # `-S` skips the module that makes these two; scripts use them.
    builtins.exit = builtins.quit = sys.exit
    report = _reporter(int(fd), token)
    try:
        # Before the program, so that what judges it is the real thing.
        parts, cases = _load_parts(rest)
    except ImportError as error:
        report(["missing", str(error.name)])
        return
    free_reserve = _limit(int(cpu_s), int(memory), int(file_bytes), int(processes))
    report(["ready"])
    sources = {SETUP: setup, CODE: code, TESTS: tests}
    if cases:
        getattr(parts, f"{style}_style").judge(parts, report, free_reserve, sources, cases)
    else:
        _judge(parts, report, free_reserve, style, sources)


def _load_parts(fields: list[str]):
    """Runs the parts of the harness that a request brings along; returns a module with them and us, and what follows.

    A style that is not asked for costs nothing, and a tier has one file to show to its programs.
    """
    count, *fields = fields
    parts = type(sys)("harness")
    parts.__dict__.update(globals())
    for place in range(0, 2 * int(count), 2):
        name, text = fields[place : place + 2]
        part = type(sys)(name)
        exec(compile(text, f"<{name}>", "exec"), part.__dict__)
        setattr(parts, name, part)
    return parts, fields[2 * int(count) :]


def _read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def _reporter(fd: int, token: str):
    write, getpid, leave, born = os.write, os.getpid, os._exit, os.getpid()

    def report(fields: list[str]) -> None:
        # A copy that the program forked runs the tests too; only the first process may speak.
        if getpid() != born:
            leave(0)
        data = encode([token, *fields])
        while data:
            data = data[write(fd, data) :]

    return report


def _limit(cpu_s: int, memory: int, file_bytes: int, processes: int):
    """Sets the limits; returns the function that frees the memory kept for the report."""
    set_limit, address_space = resource.setrlimit, resource.RLIMIT_AS
    set_limit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    set_limit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    set_limit(resource.RLIMIT_NOFILE, (64, 64))
    set_limit(resource.RLIMIT_CORE, (0, 0))
    if processes:
        set_limit(resource.RLIMIT_NPROC, (processes, processes))
    whole = memory + REPORT_BYTES
    set_limit(address_space, (memory, whole))
    return lambda: set_limit(address_space, (whole, whole))


def _judge(parts, report, free_reserve, style: str, sources: dict[str, str]) -> None:
    leave, outcome = os._exit, Outcome()
    driver, coverage = getattr(parts, f"{style}_style"), getattr(parts, "line_coverage", None)
    if coverage:
        outcome.watch = coverage.watch
    outcome.expect_mocks(sources)
    intact = _snapshot(driver.guarded(parts, outcome))
    error = None
    try:
        driver.run(parts, sources, outcome, intact)
    except BaseException as caught:
        error = caught
    whole = intact()
    free_reserve()
    if not whole:
        outcome.tamper("builtins or the test framework were replaced")
    elif outcome.is_chameleon:
        outcome.tamper("a value equals everything that it is compared with")
    elif error is not None:
        outcome.blame(error, sources)
    report(done_fields(outcome, coverage))
    leave(0)


def done_fields(outcome: Outcome, coverage=None) -> list[str]:
    return ["done", *outcome.fields(), peak_mb(), *(coverage.counts() if coverage else ("", ""))]


class Outcome:
    """What the run has shown so far; `blame` turns an exception into a status."""

    def __init__(self) -> None:
        self.status = "pass"
        self.error_type = self.message = self.last_frame = self.traceback = ""
        self.run = self.passed = 0
        self.watch = lambda compiled: None
        self.is_chameleon = False
        # A class that no program has seen; one that setup or tests may use; items left to look at.
        self._fresh, self._free, self._room = type("Fresh", (), {}), None, LOOK_ALL

    def fields(self) -> list[str]:
        words = [self.status, self.error_type, self.message, self.last_frame, self.traceback]
        return [*words, str(self.run), str(self.passed)]

    def expect_mocks(self, sources: dict[str, str]) -> None:
        """Lets `mock.ANY` equal everything where setup or tests speak of mocks; called before the program runs."""
        if "mock" in sources[SETUP] or "mock" in sources[TESTS]:
            from unittest import mock

            self._free = type(mock.ANY)

    def look(self, value):
        """Looks at what is compared: a value that equals an object made just now would pass any test.

        So would one in a list; the items of containers are looked at as long as that takes little time.
        """
        if id(type(value)) in PLAIN:
            return value
        found, room = [value], min(LOOK_ITEMS, self._room)
        while found:
            item = found.pop()
            if id(type(item)) not in BARE:
                self.is_chameleon = self.is_chameleon or self._equals_all(item)
            items = [item for _, item in zip(range(room), _items(item), strict=False)]
            room -= len(items)
            self._room -= len(items)
            found += [item for item in items if id(type(item)) not in PLAIN]
        return value

    def _equals_all(self, value) -> bool:
        if type(value) is self._free:
            return False
        try:
            return bool(value == object() or value == self._fresh())
        except Exception:
            return False  # What cannot be compared, or answers with no bool (an array), does not equal everything.

    def tamper(self, message: str) -> None:
        self.status, self.error_type, self.message, self.traceback = "tampered", "Tampered", message, message

    def blame(self, error: BaseException, sources: dict[str, str]) -> None:
        self.status = status_of(error)
        self.error_type = _said(lambda: type(error).__name__)[:100]
        self.message = _said(lambda: str(error))[:MESSAGE_CHARS]
        frames = list(_frames(error, sources))
        self.last_frame = "{}:{} in {}".format(*frames[-1]) if frames else ""
        lines = ["Traceback (most recent call last):"]
        lines += (_frame_text(frame, sources) for frame in frames[-MAX_FRAMES:])
        lines.append(f"{self.error_type}: {self.message}" if self.message else self.error_type)
        self.traceback = "\n".join(lines)[-TAIL_CHARS:]


def _items(value):
    """Returns what is in a container, as its base says: a subclass may say something else."""
    for base in CONTAINERS:
        if issubclass(type(value), base):
            return (part for pair in dict.items(value) for part in pair) if base is dict else base.__iter__(value)
    return ()


def status_of(error: BaseException) -> str:
    if isinstance(error, AssertionError):
        return "fail"
    if isinstance(error, MemoryError):
        return "memory_limit"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "disk_limit"
    return "error"


def _said(speak) -> str:
    # The name and the text of an exception may be the program's own code.
    try:
        return str(speak())
    except BaseException:
        return "<unprintable>"


def _frames(error: BaseException, sources: dict[str, str]):
    link = error.__traceback__
    while link is not None:
        code = link.tb_frame.f_code
        if code.co_filename in sources:
            yield code.co_filename, link.tb_lineno or 0, code.co_name
        link = link.tb_next
    if isinstance(error, SyntaxError) and error.filename in sources:
        yield error.filename, error.lineno or 0, "<module>"


def _frame_text(frame: tuple[str, int, str], sources: dict[str, str]) -> str:
    label, number, name = frame
    lines = sources[label].splitlines()
    line = lines[number - 1].strip()[:200] if 0 < number <= len(lines) else ""
    head = f'  File "{label}", line {number}, in {name}'
    return f"{head}\n    {line}" if line else head


def _snapshot(guarded: list):
    """Returns a function that says whether the names that judge a program are still the real ones.

    It puts the builtins back, so that what the harness does next can rely on them.
    """
    names = builtins.__dict__
    # Interactive display (doctest) sets `_`.
    before = {name: value for name, value in names.items() if name != "_"}
    modules = [(owner.__name__, owner) for owner in guarded if type(owner) is type(sys)]
    modules = [(name, owner) for name, owner in modules if sys.modules.get(name) is owner]
    owned = [(owner, {name: value for name, value in vars(owner).items() if _judges(name, value)}) for owner in guarded]

    def intact() -> bool:
        changed = False
        for name in before:
            changed = changed or name not in names or names[name] is not before[name]
        names.update(before)
        for owner, real in owned:
            now = vars(owner)
            changed = changed or any(now.get(name) is not real[name] for name in real)
        # What is imported later, by the tests or by the framework itself, is looked up there.
        return not (changed or any(sys.modules.get(name) is not module for name, module in modules))

    return intact


def _judges(name: str, value) -> bool:
    """Whether this attribute of a test framework can decide a verdict; settings, such as `maxDiff`, are the tests'."""
    kinds = (classmethod, staticmethod, property, list, tuple, set, frozenset, dict, type(sys))
    return name not in FREE and (callable(value) or isinstance(value, kinds))


def module(name: str) -> dict:
    module = type(sys)(name)
    sys.modules[name] = module
    module.__dict__["__builtins__"] = builtins
    return module.__dict__


def walk(tree):
    """Yields the nodes of a tree; what is put into one that was yielded is not visited."""
    import _ast as nodes

    stack = [tree]
    while stack:
        node = stack.pop()
        for field in node._fields:
            children = getattr(node, field, None)
            stack += [x for x in (children if type(children) is list else [children]) if isinstance(x, nodes.AST)]
        yield node


def look_at_equals(tree) -> None:
    """Turns every `a == b` of `tree` into `__looked__(a) == __looked__(b)`."""
    for node in walk(tree):
        if type(node).__name__ == "Compare" and type(node.ops[0]).__name__ == "Eq":
            node.left, node.comparators[0] = _looked(node.left), _looked(node.comparators[0])


def _looked(value):
    import _ast as nodes

    place = {name: getattr(value, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")}
    return nodes.Call(func=nodes.Name(id=LOOK, ctx=nodes.Load(), **place), args=[value], keywords=[], **place)


def peak_mb() -> str:
    # getrusage would give the parent's peak: the kernel carries it over an exec.
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM"):
                    return str(int(line.split()[1]) / 1024)
    except (OSError, MemoryError):
        pass
    return "0"


if __name__ == "__main__":
    # Before 3.11 no option leaves it out.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    main()
