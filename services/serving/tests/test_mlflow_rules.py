"""The page of input types, row by row, against MLflow itself and against this service."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from rules import Oracle, Rule, ask_fairlead, mlflow_oracle, read_rules

from fairlead_serving.domain.signature import Kind

RULES, REASONS = read_rules()


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """MLflow's scoring server."""
    with mlflow_oracle() as started:
        yield started


def test_page_is_complete() -> None:
    """Each type has rules for a column that is required and for one that is not, each why is told."""
    kinds = {rule.sent[1] for rule in RULES if rule.sent[0] == "type"}
    assert kinds >= {*Kind, *(f"{kind}?" for kind in Kind), "map(long)", "array(long)", "any"}
    assert {rule.sent[0] for rule in RULES} == {"type", "body", "CSV", "params"}
    assert {rule.why for rule in RULES} - {""} == set(REASONS)
    assert len(RULES) > 900


@pytest.mark.parametrize("rule", RULES, ids=[" ".join(rule.sent) for rule in RULES])
def test_rule_is_as_the_page_says(rule: Rule, oracle: Oracle) -> None:
    """MLflow and this service make of a request what the page says; bold is where they differ."""
    theirs, ours = oracle.ask(rule.case), ask_fairlead(rule.case)
    assert rule.plain(theirs) == rule.theirs
    assert rule.plain(ours) == rule.ours.strip("*")
    assert (rule.theirs != rule.ours) is rule.is_bold is bool(rule.why)
    if theirs != "refused" and not rule.is_bold:
        assert _types(theirs) == _types(ours)


def test_mlflow_says_the_same_over_http(oracle: Oracle) -> None:
    """The function behind MLflow's route, which is asked for each rule, is what serves."""
    cases = [rule.case for rule in RULES[:: len(RULES) // 40]]
    with mlflow_oracle("--over-http") as served:
        assert [served.ask(case) for case in cases] == [oracle.ask(case) for case in cases]


def _types(answer: dict[str, Any]) -> str:
    """Give the types of columns and arrays; pandas has two for text, with the same values."""
    return json.dumps(answer["types"]).replace('"str"', '"object"')
