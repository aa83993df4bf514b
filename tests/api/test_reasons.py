"""Condition types and reasons are words of the API: CamelCase, unique, explained."""

import re

from penstock.api import Condition, ConditionType, Reason


def test_words_are_camel_case_and_explained() -> None:
    for word in [*ConditionType, *Reason]:
        assert re.fullmatch(r"[A-Z][A-Za-z]+", word.value), word
        assert word.meaning, word
        assert not word.meaning.endswith("."), word


def test_a_word_is_the_string_on_the_wire() -> None:
    assert f"{Reason.NAME_TAKEN}" == "NameTaken"
    when = "2026-01-01T00:00:00Z"
    one = Condition(type=ConditionType.READY, status="True", reason=Reason.READY, last_transition_time=when)
    assert one.to_dict()["reason"] == "Ready"


def test_the_conditions_are_the_documented_ones() -> None:
    assert [str(each) for each in ConditionType] == [
        "Accepted",
        "ProfileReady",
        "CapacityAvailable",
        "RouterReady",
        "Available",
        "Progressing",
        "Degraded",
        "Ready",
    ]
