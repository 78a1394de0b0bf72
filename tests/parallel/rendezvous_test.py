"""Processes meet before JAX starts: who is missing, came twice or counts differently is said to all that came."""

import socket
import threading

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.parallel.rendezvous import meet
from tests.support.processes import free_port


def outcomes(*those, seconds=10.0, stray=None):
    """What `meet` says to each (process, processes) of `those`: an error, or nothing."""
    port, found = free_port(), ["no answer"] * len(those)

    def one(place, process, processes):
        try:
            meet(f"127.0.0.1:{port}", processes, process, seconds)
            found[place] = ""
        except UserError as error:
            found[place] = str(error)

    threads = [threading.Thread(target=one, args=(i, *each)) for i, each in enumerate(those)]
    threads[0].start()
    if stray is not None:
        stray(port)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_go_on_when_all_are_there():
    assert outcomes((0, 4), (3, 4), (1, 4), (2, 4)) == [""] * 4


def test_all_that_came_learn_who_is_missing():
    first, second = outcomes((0, 4), (2, 4), seconds=1.0)
    assert first == second
    assert "processes 1, 3 of 4 did not come within 1 s" in first


def test_a_process_that_finds_no_coordinator_says_where_it_looked():
    port = free_port()
    with pytest.raises(UserError, match=f"process 1 did not reach process 0 at 127.0.0.1:{port} within 0.5 s"):
        meet(f"127.0.0.1:{port}", 2, 1, 0.5)


@pytest.mark.slow
def test_one_number_for_two_processes_is_refused_on_all():
    found = outcomes((0, 3), (1, 3), (1, 3))
    assert found[0].startswith("process 1 came twice, from ")
    assert found[0] in found[1:]


def test_processes_that_count_differently_are_refused_on_all():
    first, second = outcomes((0, 2), (1, 3))
    assert first == second
    assert "counts 3 processes, process 0 on " in first


def test_a_visitor_of_another_kind_is_ignored():
    def scan(port):
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            except ConnectionRefusedError:
                threading.Event().wait(0.05)

    assert outcomes((0, 2), (1, 2), stray=scan) == ["", ""]


def test_a_port_that_is_taken_is_an_error_with_the_port():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"process 0 cannot listen on port {port} .*choose a free port"):
            meet(f"127.0.0.1:{port}", 2, 0, 1.0)
