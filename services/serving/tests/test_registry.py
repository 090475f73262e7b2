"""Fetching model versions from a real MLflow server."""

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from fairlead_serving.adapters.cache import digest_folder
from fairlead_serving.adapters.registry import Registry
from fairlead_serving.domain.digest import DIGEST_TAG
from fairlead_serving.domain.errors import CannotFetchError, CannotLoadError
from fairlead_serving.domain.source import ModelVersion, cache_name

AWKWARD = "Flight Delay (EU) – 2026.v1"
NOBODY = "http://127.0.0.1:9"


def _register(url: str, folder: Path, *, name: str | None = None, digest: str = "") -> ModelVersion:
    """Upload a folder and register it, over REST as MLflow's client does."""
    name = name or f"flights-{uuid.uuid4().hex[:8]}"
    with httpx.Client(base_url=url) as client:
        api = "/api/2.0/mlflow"
        made = client.post(f"{api}/logged-models", json={"experiment_id": "0"})
        made.raise_for_status()
        info = made.json()["model"]["info"]
        path = info["artifact_uri"].removeprefix("mlflow-artifacts:/")
        for file in folder.iterdir():
            address = f"/api/2.0/mlflow-artifacts/artifacts/{path}/{file.name}"
            client.put(address, content=file.read_bytes()).raise_for_status()
        extra = f"{path}/deep/er/ünicode (1).txt"
        address = f"/api/2.0/mlflow-artifacts/artifacts/{quote(extra)}"
        client.put(address, content=b"x").raise_for_status()
        client.post(f"{api}/registered-models/create", json={"name": name}).raise_for_status()
        tags = [{"key": DIGEST_TAG, "value": digest}] if digest else []
        made = client.post(
            f"{api}/model-versions/create",
            json={
                "name": name,
                "source": f"models:/{info['model_id']}",
                "model_id": info["model_id"],
                "tags": tags,
            },
        )
        made.raise_for_status()
    return ModelVersion(name, made.json()["model_version"]["version"])


def _fetch(url: str, cache: Path, version: ModelVersion) -> Path:
    with Registry(url, cache) as registry:
        return registry.fetch(version)


def test_whole_folder_arrives(registry: Any, models: Path, tmp_path: Path) -> None:
    """Every file arrives, in folders and with awkward names too."""
    version = _register(registry.url, models / "cloudpickle")
    folder = _fetch(registry.url, tmp_path, version)
    assert (folder / "MLmodel").read_bytes() == (models / "cloudpickle" / "MLmodel").read_bytes()
    assert (folder / "deep" / "er" / "ünicode (1).txt").read_bytes() == b"x"


def test_cached_version_is_used_while_the_registry_is_away(
    registry: Any, models: Path, tmp_path: Path
) -> None:
    """What was fetched whole once needs no registry; what never was, does."""
    version = _register(registry.url, models / "cloudpickle")
    folder = _fetch(registry.url, tmp_path, version)
    away = tmp_path / cache_name(version, NOBODY)
    with pytest.raises(CannotFetchError, match=r"127\.0\.0\.1:9"):
        _fetch(NOBODY, tmp_path, version)
    shutil.copytree(folder, away)
    assert _fetch(NOBODY, tmp_path, version) == away


def test_cached_version_outlives_its_deletion(
    registry: Any, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A version deleted from the registry still starts where it was fetched whole, with a warning.

    Where it never was, asking again would not help.
    """
    version = _register(registry.url, models / "cloudpickle")
    folder = _fetch(registry.url, tmp_path / "here", version)
    with httpx.Client(base_url=registry.url) as client:
        named = {"name": version.name, "version": version.version}
        address = "/api/2.0/mlflow/model-versions/delete"
        client.request("DELETE", address, json=named).raise_for_status()
    assert _fetch(registry.url, tmp_path / "here", version) == folder
    assert "RESOURCE_DOES_NOT_EXIST" in caplog.text
    with pytest.raises(CannotLoadError, match="RESOURCE_DOES_NOT_EXIST"):
        _fetch(registry.url, tmp_path / "elsewhere", version)


def test_killed_download_is_not_taken_for_a_whole_one(
    registry: Any, models: Path, tmp_path: Path
) -> None:
    """A folder without its completion marker, and leftovers beside it, are fetched anew."""
    version = _register(registry.url, models / "cloudpickle")
    folder = tmp_path / cache_name(version, registry.url)
    for leftover in (folder, folder.with_suffix(".partial")):
        leftover.mkdir()
        (leftover / "MLmodel").write_text("half")
        (leftover / "stray").write_text("half")
    assert _fetch(registry.url, tmp_path, version) == folder
    assert not (folder / "stray").exists()
    assert (folder / "model.pkl").exists()


def test_version_that_was_made_again_is_fetched_again(
    registry: Any, models: Path, tmp_path: Path
) -> None:
    """The same name and number with other files replaces what is cached."""
    version = _register(registry.url, models / "cloudpickle")
    folder = _fetch(registry.url, tmp_path, version)
    marker = folder / "fairlead-complete.json"
    marker.write_text(json.dumps({"uri": "mlflow-artifacts:/before", "digest": ""}))
    (folder / "model.pkl").write_bytes(b"before")
    _fetch(registry.url, tmp_path, version)
    assert (folder / "model.pkl").read_bytes() != b"before"


def test_files_that_are_not_those_recorded_are_refused(
    registry: Any, models: Path, tmp_path: Path
) -> None:
    """A digest tag that does not match refuses the version and keeps nothing."""
    version = _register(registry.url, models / "cloudpickle", digest="0" * 64)
    with pytest.raises(CannotLoadError, match=r"changed after it was registered"):
        _fetch(registry.url, tmp_path, version)
    assert not (tmp_path / cache_name(version, registry.url)).exists()


def test_files_that_are_those_recorded_are_taken(
    registry: Any, models: Path, tmp_path: Path
) -> None:
    """A digest tag that matches lets the version through."""
    plain = _fetch(
        registry.url, tmp_path / "first", _register(registry.url, models / "cloudpickle")
    )
    digest = digest_folder(plain)
    version = _register(registry.url, models / "cloudpickle", digest=digest)
    assert (_fetch(registry.url, tmp_path / "second", version) / "MLmodel").exists()


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(ModelVersion("nobody", "1"), id="no such model"),
        pytest.param(ModelVersion("", "", "m-0"), id="no such model id"),
    ],
)
def test_version_that_does_not_exist_can_never_load(
    version: ModelVersion, registry: Any, tmp_path: Path
) -> None:
    """Asking again would not help."""
    with pytest.raises(CannotLoadError, match="RESOURCE_DOES_NOT_EXIST"):
        _fetch(registry.url, tmp_path, version)


def test_model_of_mlflow_3_is_served_by_its_uri(
    registry: Any,
    models: Path,
    serve: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """The command serves a version under a name with spaces, dots, brackets and a dash."""
    version = _register(registry.url, models / "plain", name=AWKWARD)
    options = ("--tracking-uri", registry.url, "--cache", str(tmp_path / "cache"))
    with serve(f"models:/{AWKWARD}/{version.version}", *options) as server:
        server.wait_ready()
        answer = server.predict({"dataframe_records": [{"hour": 1.0, "day": 2, "late": 0}]})
        title = server.http.get("/openapi.json").json()["info"]["title"]
    assert answer.json()["predictions"] == [0.0]
    assert title == AWKWARD


def test_registry_that_is_away_ends_with_4(serve: Callable[..., Any], tmp_path: Path) -> None:
    """Exit code 4 tells the controller that trying again may help."""
    log = tmp_path / "termination"
    options = ("--tracking-uri", NOBODY, "--cache", str(tmp_path), "--termination-log", str(log))
    with serve("models:/flights/1", *options) as server:
        assert server.wait_exit() == 4
    assert log.read_text() == "The registry at 127.0.0.1:9 cannot be reached: ConnectError.\n"


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A cache folder that is a file is one sentence, and trying again may help."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(CannotFetchError, match="cannot be written to the cache"):
        _fetch(NOBODY, tmp_path / "cache", ModelVersion("flights", "1"))


def test_an_artifact_store_that_is_away_is_told_from_the_registry(tmp_path: Path) -> None:
    """Where MLflow answers and its artifact store does not, the sentence says so, and soon."""

    def answer(request: httpx.Request) -> httpx.Response:
        if "mlflow-artifacts" in request.url.path:
            raise httpx.ReadTimeout("no byte came", request=request)
        if request.url.path.endswith("get-download-uri"):
            return httpx.Response(200, json={"artifact_uri": "mlflow-artifacts:/0/a/model"})
        return httpx.Response(200, json={"model_version": {"tags": []}})

    with Registry("http://mlflow.test:5000", tmp_path) as registry:
        assert (registry._client.timeout.read or 0) <= 15
        transport = httpx.MockTransport(answer)
        registry._client = httpx.Client(base_url="http://mlflow.test:5000", transport=transport)
        with pytest.raises(CannotFetchError, match=r"mlflow\.test:5000.*artifact store.*Timeout"):
            registry.fetch(ModelVersion("flights", "2"))
