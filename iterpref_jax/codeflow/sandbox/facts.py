"""What an interpreter says of itself: the one that is asked runs this file, so its words are those of Python 3.5."""

import importlib.util
import json
import os
import site
import sys
import sysconfig


def facts():
    """Returns what `interpreter.Interpreter` holds, as JSON values; `packages` in the order of `sys.path`."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    folders = [os.path.realpath(path) for path in found if os.path.isdir(path)]
    return {
        "executable": sys.executable,
        "implementation": sys.implementation.name,
        "version": list(sys.version_info[:3]),
        "base": os.path.realpath(sys.base_prefix),
        "packages": sorted(set(folders), key=folders.index),
        "magic": list(importlib.util.MAGIC_NUMBER),
        "has_safe_path": hasattr(sys.flags, "safe_path"),
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
