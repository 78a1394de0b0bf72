"""Findings of several processes become one table, each said once."""

import json

from iterpref_jax.doctor.finding import content, fail, has_failed, joined, ok, table, warn

WELL, SLOW, BROKEN = ok("a", "well"), warn("b", "slow", "hurry"), fail("b", "broken", "mend it")


def test_what_all_processes_found_is_said_once_and_what_one_found_names_it():
    shown = table(joined([[WELL, SLOW], [WELL], [WELL, SLOW]])).splitlines()
    assert shown[0] == "OK    a  well"
    assert shown[1] == "WARN  b  process 0, 2: slow"
    assert shown[2].split() == ["->", "hurry"]
    assert shown[3] == "1 ok, 1 to look at, 0 wrong"


def test_checks_stay_in_order_though_processes_found_different_things():
    found = joined([[WELL, ok("c", "last")], [WELL, BROKEN, ok("c", "last")]])
    assert [one.finding.check for one in found].index("c") > 0
    assert {one.processes for one in found if one.finding == BROKEN} == {(1,)}


def test_one_broken_process_is_a_failure_and_a_warning_is_none():
    assert has_failed(joined([[WELL], [BROKEN]]))
    assert not has_failed(joined([[WELL], [SLOW]]))


def test_json_holds_what_the_table_shows():
    [first, second] = json.loads(json.dumps(content(joined([[WELL], [WELL, BROKEN]]))))
    assert first == {"status": "OK", "check": "a", "text": "well", "advice": "", "processes": []}
    assert second == {"status": "FAIL", "check": "b", "text": "broken", "advice": "mend it", "processes": [1]}
