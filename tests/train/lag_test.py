"""Hosts side by side: the one that the others wait for is named, and one that costs nothing is not."""

from iterpref_jax.train.memory_use import memory_use
from iterpref_jax.train.pace import Pace, laggard, side_by_side


def hosts(**numbers):
    """Four hosts that take 2 s an update, of which they need 0.3 s themselves and never wait for input."""
    usual = {"update_s": [2.0] * 4, "input_wait_s": [0.0] * 4, "host_s": [0.3] * 4, "device_gib": [None] * 4} | numbers
    return [{name: values[place] for name, values in usual.items()} for place in range(4)]


def test_each_number_is_told_with_the_middle_host_and_the_one_that_has_the_highest():
    line = side_by_side(hosts(input_wait_s=[0.1, 0.2, 0.9, 0.4]))
    assert line["processes"] == 4
    assert line["input_wait_s"] == 0.9
    assert line["input_wait_s/median"] == 0.2
    assert line["input_wait_s/process"] == 2
    # No host knows the memory of its devices.
    assert not any(name.startswith("device_gib") for name in line)


def test_one_host_is_not_compared():
    assert side_by_side(hosts()[:1]) == {"processes": 1, "update_s": 2.0, "input_wait_s": 0.0, "host_s": 0.3}


def test_equal_hosts_have_no_laggard():
    assert laggard(side_by_side(hosts())) is None
    assert laggard(side_by_side(hosts(input_wait_s=[1.0] * 4, host_s=[1.9] * 4))) is None
    assert laggard(side_by_side(hosts()[:1])) is None


def test_a_host_that_waits_for_its_input_is_named():
    found = laggard(side_by_side(hosts(input_wait_s=[0.0, 0.0, 0.0, 1.1], host_s=[0.3, 0.3, 0.3, 1.9])))
    assert found is not None
    assert found[0] == 3
    assert "waits for its input" in found[1]


def test_a_host_that_never_waits_for_its_devices_is_named():
    found = laggard(side_by_side(hosts(host_s=[0.3, 1.95, 0.3, 0.3])))
    assert found is not None
    assert found[0] == 1
    assert "handing over" in found[1]


def test_work_that_the_devices_hide_is_no_lag():
    assert laggard(side_by_side(hosts(host_s=[1.2, 0.3, 0.3, 0.3]))) is None


def test_pace_is_a_mean_over_the_updates_since_it_was_told_last():
    pace = Pace()
    pace.add(2.0, 0.5, 1.0)
    pace.add(4.0, 0.0, 3.0)
    found = pace.take()
    assert (found["update_s"], found["input_wait_s"], found["host_s"]) == (3.0, 0.25, 1.0)
    assert "update_s" not in pace.take()


def test_the_memory_of_this_process_is_told():
    import numpy as np

    before = memory_use()["process_gib"]
    held = np.ones(1 << 26)  # half a GiB
    found = memory_use()
    assert 0.45 < found["process_gib"] - before < 0.6
    assert found["process_peak_gib"] >= found["process_gib"]
    assert held.nbytes


def test_the_fullest_device_of_this_process_is_told(monkeypatch):
    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            gib = 1 << 30
            # A platform may leave a number out.
            return {"bytes_in_use": self.used * gib, "peak_bytes_in_use": 8 * gib} if self.used else None

    monkeypatch.setattr("jax.local_devices", lambda: [Device(2), Device(5), Device(0)])
    found = memory_use()
    assert (found["device_gib"], found["device_peak_gib"], found["device_limit_gib"]) == (5.0, 8.0, None)
