"""The socket that the server binds, and its address."""

import socket

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.serve.server import bind, url


def test_a_free_port_is_taken_and_told():
    with bind("127.0.0.1", 0) as bound:
        assert url(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        assert bound.getsockname()[1] > 0


def test_an_address_of_version_6_is_written_in_brackets():
    with bind("::1", 0) as bound:
        assert url(bound).startswith("http://[::1]:")


def test_a_port_that_another_server_listens_at_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--host=127.0.0.1 --port={port}: .*choose another port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("127.0.0.1", 70_000)])
def test_an_address_that_does_not_exist_is_named(host, port):
    with pytest.raises(UserError, match=f"--host={host} --port={port}"):
        bind(host, port)
