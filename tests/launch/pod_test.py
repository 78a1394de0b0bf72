"""TPU slices that are preempted, deleted or out of reach: what `up` and `run` do, with a gcloud that says so."""

import pytest

from tests.launch.shell import WORDS, calls, fake, launch

SLICE = ["--name=pod", "--zone=z", "--type=v6e-32", "--runtime=v2-alpha-tpuv6e"]
GONE = "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource 'pod' was not found."
OFFLINE = "ERROR: (gcloud.compute.tpus.queued-resources.describe) There was a problem refreshing your auth tokens."


def pod(tmp_path, action, *states, words=()):
    """Runs an action; gcloud says one state after another, the last one again and again."""
    said = tmp_path / "states"
    said.write_text("".join(f"{state}\n" for state in states))
    body = (
        'case "$*" in\n'
        f"*describe*) now=$(head -n 1 {said}); [ $(wc -l < {said}) = 1 ] || sed -i 1d {said}\n"
        '  case "$now" in ERROR*) echo "$now" >&2; exit 1 ;; *) echo "$now" ;; esac ;;\n'
        "esac"
    )
    fake(tmp_path, "gcloud", body)
    fake(tmp_path, "sleep")
    ended = launch(tmp_path, "tpu_pod.sh", action, *SLICE, *words)
    verbs = ("describe", "create", "delete")
    return ended, [verb for call in calls(tmp_path) for verb in verbs if call[:5][-1] == verb]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["SUSPENDING", "SUSPENDING", "SUSPENDED", "ACTIVE"], ["delete", "create"]),
        (["DELETING", GONE, "PROVISIONING", "ACTIVE"], ["create"]),
        (["FAILED", "ACTIVE"], ["delete", "create"]),
        (["ACTIVE"], []),
        ([OFFLINE, OFFLINE, "ACTIVE"], []),
        (["ACTIVE", OFFLINE, "ACTIVE"], []),
        ([GONE, "PROVISIONING", OFFLINE, "ACTIVE"], ["create"]),
    ],
)
def test_a_slice_is_made_anew_only_once_the_old_one_is_known_to_have_gone(states, expected, tmp_path):
    ended, verbs = pod(tmp_path, "up", *states)
    assert ended.returncode == 0, ended.stderr
    assert [verb for verb in verbs if verb != "describe"] == expected


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["ACTIVE", "SUSPENDING", "SUSPENDED"], 75),
        ([GONE, "PROVISIONING", "SUSPENDED"], 75),
        (["ACTIVE", "FAILED"], 75),
        # The same request would fail again.
        ([GONE, "PROVISIONING", "FAILED"], 1),
        (["SUSPENDED", "FAILED"], 1),
    ],
)
def test_a_slice_that_is_lost_while_it_is_waited_for_is_worth_another_attempt(states, status, tmp_path):
    ended, _ = pod(tmp_path, "up", *states)
    assert ended.returncode == status
    assert f"the slice is {states[-1]}" in ended.stderr


def test_a_run_whose_slice_is_preempted_goes_on_with_a_new_one(tmp_path):
    states = ["ACTIVE", "SUSPENDING", "SUSPENDED", "SUSPENDED", "ACTIVE"]
    ended, verbs = pod(tmp_path, "run", *states, words=["--", *WORDS])
    assert ended.returncode == 0, ended.stderr
    assert "attempt 1 of 20 ended with status 75" in ended.stderr
    assert [verb for verb in verbs if verb != "describe"] == ["delete", "create"]


def test_where_gcloud_cannot_say_nothing_is_made_and_its_own_words_are_shown(tmp_path):
    ended, verbs = pod(tmp_path, "run", OFFLINE, words=["--", *WORDS])
    assert ended.returncode == 1
    assert verbs == ["describe"] * 5
    assert OFFLINE in ended.stderr
    assert "it costs until 'down' deletes it" in ended.stderr
