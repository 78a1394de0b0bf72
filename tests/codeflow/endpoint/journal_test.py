"""The journal: what was put stays, whatever happens to the process; one writer; damage is named."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from iterpref_jax.codeflow.endpoint import journal
from iterpref_jax.codeflow.endpoint.journal import ANSWER, Totals, open_journal
from iterpref_jax.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.sqlite"


def start(path, body):
    """A process with `kept`, a journal at `path`; it says what `body` prints."""
    program = (
        f"from iterpref_jax.codeflow.endpoint.journal import open_journal\nwith open_journal({str(path)!r}) as kept:"
    )
    program += "".join(f"\n    {line}" for line in body.splitlines())
    return subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_value_is_found_by_its_kind_and_key_also_after_reopening(path):
    with open_journal(path) as kept:
        kept.put("verdict", "a", {"text": "ü \ud800", "n": [1, None]})
    with open_journal(path) as kept:
        assert kept.get("verdict", "a") == {"text": "ü \ud800", "n": [1, None]}
        assert kept.get("answer", "a") is None
        assert kept.get("verdict", "b") is None


def test_putting_the_same_value_again_changes_nothing(path):
    with open_journal(path) as kept:
        kept.put("verdict", "a", {"x": 1, "y": 2})
        kept.put("verdict", "a", {"y": 2, "x": 1})
        assert list(kept.items("verdict")) == [("a", {"x": 1, "y": 2})]


def test_another_value_under_one_key_is_refused_and_the_first_stays(path):
    with open_journal(path) as kept:
        kept.put("verdict", "a", {"x": 1})
        with pytest.raises(ValueError, match=r"verdict a has another value already: \{\"x\":1\}"):
            kept.put("verdict", "a", {"x": 2})
        assert kept.get("verdict", "a") == {"x": 1}


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": {1, 2}}])
def test_a_value_that_is_not_json_is_refused(path, value):
    with open_journal(path) as kept, pytest.raises((ValueError, TypeError)):
        kept.put("verdict", "a", value)


def test_items_come_in_the_order_in_which_they_were_put_over_many_pages(path, monkeypatch):
    monkeypatch.setattr(journal, "PAGE_ROWS", 3)
    names = ["z", "a", "m", "b", "y", "c", "k", "d"]
    with open_journal(path) as kept:
        for name in names:
            kept.put("verdict", name, {"name": name})
            kept.put("other", name, {})
        assert [key for key, _ in kept.items("verdict")] == names
        assert kept.counts() == {"other": 8, "verdict": 8}


def test_totals_sum_tokens_and_cost_of_answers_by_purpose(path):
    with open_journal(path) as kept:
        for i, purpose in enumerate(["tests", "repair", "tests"]):
            value = {"purpose": purpose, "prompt_tokens": 10, "completion_tokens": i, "cost": 0.5}
            kept.put(ANSWER, str(i), value)
        kept.put("verdict", "0", {"purpose": "tests", "cost": 100})
        assert kept.totals() == {
            "repair": Totals(calls=1, prompt_tokens=10, completion_tokens=1, cost=0.5),
            "tests": Totals(calls=2, prompt_tokens=20, completion_tokens=2, cost=1.0),
        }


def test_threads_may_put_at_once(path):
    with open_journal(path) as kept:

        def put(number):
            for i in range(20):
                kept.put("verdict", f"{number}-{i}", {"i": i})

        threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kept.counts() == {"verdict": 80}


def test_all_that_was_put_is_there_after_kill_9(path):
    body = "for i in range(10**9):\n    kept.put('verdict', str(i), {'i': i, 'text': 'x' * 3000})\n    print(i)"
    with start(path, body) as process:
        said = [int(process.stdout.readline()) for _ in range(50)]
        process.kill()
        said += [int(line) for line in process.stdout.read().split()]
    assert process.returncode == -signal.SIGKILL
    with open_journal(path) as kept:
        found = [value["i"] for _, value in kept.items("verdict")]
    assert found[: len(said)] == said
    assert len(found) <= len(said) + 1


def test_every_commit_waits_for_the_disk(path):
    # What a crash of the whole machine would show, which no test can have.
    with open_journal(path) as kept:
        assert kept._writer.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_second_process_is_refused_with_the_name_of_the_first_until_that_one_is_gone(path):
    with start(path, "print(1)\nimport time\ntime.sleep(60)") as process:
        process.stdout.readline()
        with pytest.raises(UserError, match=f"process {process.pid} on .*, since .* has this journal open"):
            open_journal(path).__enter__()
        process.kill()
    with open_journal(path) as kept:
        assert kept.counts() == {}


def test_a_second_opening_in_the_same_process_is_refused(path):
    with open_journal(path), pytest.raises(UserError, match=f"process {os.getpid()} "):
        open_journal(path).__enter__()


def filled(path):
    with open_journal(path) as kept:
        for i in range(200):
            kept.put("verdict", str(i), {"text": f"value {i} " * 50})


def overwrite(path, place, content):
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


@pytest.mark.parametrize("place", [0, 4096 * 5])
def test_a_damaged_file_is_named_with_what_to_do(path, place):
    filled(path)
    overwrite(path, place, b"\xa5" * 4096)
    with pytest.raises(UserError, match=r"journal\.sqlite: the journal is damaged \(.*\); put back a copy, or save"):
        open_journal(path).__enter__()


def test_a_changed_byte_inside_a_value_is_noticed(path):
    filled(path)
    overwrite(path, path.read_bytes().index(b"value 77 value"), b"valuf")
    with open_journal(path) as kept, pytest.raises(UserError, match=r"entry 78 \(77\) does not match its checksum"):
        kept.get("verdict", "77")


def test_other_sqlite_files_and_other_forms_are_refused(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (x)")
    with pytest.raises(UserError, match="is not a journal of ours"):
        open_journal(path).__enter__()
    path.unlink()
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="a journal of form 99, this program reads form 1"):
        open_journal(path).__enter__()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be made, a file stands there; name another folder"):
        open_journal(tmp_path / "file" / "journal.sqlite").__enter__()
