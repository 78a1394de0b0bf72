"""Which lines of a program ran: a part of the harness that a request brings.

Standard library only; no import of ours.
"""

from __future__ import annotations

import sys

# From Python 3.12 on: a line costs one call, once.
_monitoring = getattr(sys, "monitoring", None)
_covered: set[int] = set()
_lines: set[int] = set()


def watch(compiled) -> None:
    """Notes from now on which lines of this code, and of the functions in it, are run."""
    codes = [compiled]
    for code in codes:
        codes += [constant for constant in code.co_consts if type(constant) is type(compiled)]
        # A line 0 is nobody's: the first instruction of a module.
        _lines.update(line for _, _, line in code.co_lines() if line)
    if _monitoring:
        _monitor(codes)
    else:
        _trace(compiled.co_filename)


def counts() -> tuple[str, str]:
    """Returns how many lines were run, and how many there are."""
    return str(len(_covered & _lines)), str(len(_lines))


def _monitor(codes: list) -> None:
    assert _monitoring is not None
    tool, off = _monitoring.COVERAGE_ID, _monitoring.DISABLE
    _monitoring.use_tool_id(tool, "lines")

    def note(_, line: int):
        _covered.add(line)
        return off

    _monitoring.register_callback(tool, _monitoring.events.LINE, note)
    for code in codes:
        _monitoring.set_local_events(tool, code, _monitoring.events.LINE)


def _trace(filename: str) -> None:
    def note(frame, event, _):
        if event == "line":
            _covered.add(frame.f_lineno)
        return note

    def enter(frame, event, _):
        return note if frame.f_code.co_filename == filename else None

    import threading

    sys.settrace(enter)
    threading.settrace(enter)
