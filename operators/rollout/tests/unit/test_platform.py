"""The settings of an installation: read whole, or refused by name."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fairlead_rollout.domain.errors import InvalidSettingsError
from fairlead_rollout.domain.platform import parse_settings
from fairlead_rollout.entrypoints.operator import read_settings

REFERENCE = Path(__file__).parents[4] / "docs" / "reference" / "kubernetes.md"
Document = dict[str, Any]


def documented() -> Document:
    """Return the settings that the reference page shows."""
    text = REFERENCE.read_text("utf-8").partition("## The controller's settings")[2]
    settings: Document = json.loads(text.partition("```json")[2].partition("```")[0])
    return settings


SETTINGS = documented()
FIELDS = (
    *("namespaces", "identity", "identity.namespace", "identity.lease", "mlflow", "mlflow.url"),
    *("experiments", "experiments.url", "gateway", "gateway.namespace", "gateway.service"),
    *("serving", "serving.image", "serving.imagePullPolicy", "serving.imagePullSecrets"),
    *("serving.mlflowUrl", "serving.credentialsSecret", "serving.resources"),
    *("serving.networkPolicy", "serving.networkPolicy.enabled"),
    *("serving.networkPolicy.ingressFrom", "serving.networkPolicy.egress"),
)


def fields(document: Any, path: str = "") -> set[str]:
    """Return the paths of all settings of a document that the controller reads."""
    if not isinstance(document, dict) or path == "serving.resources.":
        return set()
    here = {f"{path}{name}" for name in document}
    return here.union(*(fields(part, f"{path}{name}.") for name, part in document.items()))


def place(document: Document, path: str) -> tuple[Document, str]:
    """Return the object that holds a setting, and its last name."""
    *parents, last = path.split(".")
    for name in parents:
        document = document[name]
    return document, last


def test_the_documented_settings_are_taken_whole() -> None:
    """What the reference page shows is what the controller reads."""
    settings = parse_settings(SETTINGS)
    assert settings.namespaces == ("ml",)
    assert (settings.lease_namespace, settings.lease) == ("fairlead", "fairlead-controller")
    assert settings.gateway_service == "fairlead-gateway-agents"
    assert settings.serving.credentials_secret == "fairlead-mlflow"  # noqa: S105 -- a Secret's name
    assert settings.serving.has_network_policy
    assert settings.serving.resources == SETTINGS["serving"]["resources"]


def test_every_documented_setting_is_tried_below() -> None:
    """A new setting gets its refusals tested, too."""
    assert fields(SETTINGS) == set(FIELDS)


@pytest.mark.parametrize("path", FIELDS)
def test_a_missing_setting_is_named(path: str) -> None:
    """The message says which, and what it should be."""
    document = copy.deepcopy(SETTINGS)
    parent, last = place(document, path)
    del parent[last]
    with pytest.raises(InvalidSettingsError, match=f"^{path}: is missing; it must be a"):
        parse_settings(document)


@pytest.mark.parametrize("value", [None, 7], ids=["null", "number"])
@pytest.mark.parametrize("path", FIELDS)
def test_a_setting_of_the_wrong_kind_is_named(path: str, value: Any) -> None:
    """The message says which, and what it is instead."""
    document = copy.deepcopy(SETTINGS)
    parent, last = place(document, path)
    parent[last] = value
    with pytest.raises(InvalidSettingsError, match=f"^{path}: must be a .*, is a (NoneType|int)"):
        parse_settings(document)


def test_no_namespace_at_all_is_refused() -> None:
    """A controller that looks after nothing is a mistake, not everything."""
    with pytest.raises(InvalidSettingsError, match="namespaces: needs at least one"):
        parse_settings({**SETTINGS, "namespaces": []})


@pytest.mark.parametrize("path", ["namespaces", "serving.imagePullSecrets"])
def test_a_list_of_names_holds_names(path: str) -> None:
    """A number among them would fail much later, and far away."""
    document = copy.deepcopy(SETTINGS)
    parent, last = place(document, path)
    parent[last] = ["ml", 7]
    with pytest.raises(InvalidSettingsError, match=rf"^{path}\[1\]: must be a str, is a int"):
        parse_settings(document)


@pytest.mark.parametrize("document", [None, [], "text", 7])
def test_anything_else_is_refused_too(document: Any) -> None:
    """What is no settings at all gets an error, not a trace."""
    with pytest.raises(InvalidSettingsError):
        parse_settings(document)


def test_an_empty_account_and_no_policies_are_settings(tmp_path: Path) -> None:
    """Empty is a value; the file is read as the chart writes it."""
    document = copy.deepcopy(SETTINGS)
    document["serving"] |= {
        "credentialsSecret": "",
        "networkPolicy": {"enabled": False, "ingressFrom": [], "egress": []},
    }
    file = tmp_path / "controller.json"
    file.write_text(json.dumps(document), "utf-8")
    serving = read_settings(file).serving
    assert (serving.credentials_secret, serving.has_network_policy) == ("", False)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, or not JSON: the path is in the message."""
    with pytest.raises(InvalidSettingsError, match=r"none\.json: No such file"):
        read_settings(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"namespaces": [', "utf-8")
    with pytest.raises(InvalidSettingsError, match=r"half\.json: is not JSON"):
        read_settings(tmp_path / "half.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSettingsError, match=r"binary\.json: is not JSON"):
        read_settings(tmp_path / "binary.json")
