"""Downloads that break, resume, or bring something else than was recorded."""

import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_proxy import Fault, FaultProxy, fault_proxy

from fairlead_serving.adapters import download
from fairlead_serving.adapters.cache import digest_folder
from fairlead_serving.adapters.registry import Registry
from fairlead_serving.domain.digest import DIGEST_TAG
from fairlead_serving.domain.errors import CannotFetchError, CannotLoadError
from fairlead_serving.domain.source import ModelVersion, cache_name
from fairlead_serving.entrypoints.cli import main

BIG = 3_000_000
API = "/api/2.0/mlflow"


def _register(url: str, folder: Path, *, digest: str = "", is_version: bool = True) -> ModelVersion:
    """Upload a folder with one big file in it, as MLflow's client does."""
    name = f"flights-{uuid.uuid4().hex[:8]}"
    with httpx.Client(base_url=url) as client:

        def post(path: str, body: object) -> Any:
            return client.post(f"{API}/{path}", json=body).raise_for_status().json()

        info = post("logged-models", {"experiment_id": "0"})["model"]["info"]
        path = info["artifact_uri"].removeprefix("mlflow-artifacts:/")
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        for file, content in {**files, "big.bin": bytes(range(250)) * (BIG // 250)}.items():
            address = f"/api/2.0/mlflow-artifacts/artifacts/{path}/{file}"
            client.put(address, content=content).raise_for_status()
        if not is_version:
            return ModelVersion("", "", info["model_id"])
        post("registered-models/create", {"name": name})
        source = f"models:/{info['model_id']}"
        tags = [{"key": DIGEST_TAG, "value": digest}] if digest else []
        made = post(
            "model-versions/create",
            {"name": name, "source": source, "model_id": info["model_id"], "tags": tags},
        )
    return ModelVersion(name, made["model_version"]["version"])


def _tag(url: str, version: ModelVersion) -> str:
    if version.model_id:
        answer = httpx.get(f"{url}{API}/logged-models/{version.model_id}").json()
        holder = answer["model"]["info"]
    else:
        query = {"name": version.name, "version": version.version}
        holder = httpx.get(f"{url}{API}/model-versions/get", params=query).json()["model_version"]
    return next((t["value"] for t in holder.get("tags", []) if t["key"] == DIGEST_TAG), "")


def _fetch(url: str, cache: Path, version: ModelVersion) -> Path:
    with Registry(url, cache) as registry:
        return registry.fetch(version)


@pytest.fixture
def proxy(registry: Any) -> Iterator[FaultProxy]:
    """Put a proxy before the MLflow server."""
    with fault_proxy(registry.url) as made:
        yield made


@pytest.fixture
def version(registry: Any, models: Path) -> ModelVersion:
    """Register a version of which nobody recorded a digest."""
    return _register(registry.url, models / "plain")


@pytest.fixture
def digest(registry: Any, version: ModelVersion, tmp_path: Path) -> str:
    """Say what the digest of the version is."""
    query = {"name": version.name, "version": version.version}
    folder = _fetch(registry.url, tmp_path / "digest", version)
    found = digest_folder(folder)
    shutil.rmtree(tmp_path / "digest")
    address = f"{registry.url}{API}/model-versions/delete-tag"
    httpx.request("DELETE", address, json={**query, "key": DIGEST_TAG}).raise_for_status()
    return found


def _big(fault: Fault, *, first: int = 1) -> Callable[[str, str, int], Fault | None]:
    """Break the first answers with the big file."""
    return lambda _, path, times: fault if path.endswith("/big.bin") and times < first else None


def _ranges(proxy: FaultProxy) -> list[str]:
    return [one.range for one in proxy.asked if one.path.endswith("/big.bin")]


def test_files_arrive_side_by_side(
    proxy: FaultProxy, version: ModelVersion, tmp_path: Path
) -> None:
    """One file that does not come keeps no other from coming."""
    others = threading.Event()

    def choose(_method: str, path: str, _times: int) -> Fault | None:
        if path.endswith("/big.bin"):
            assert others.wait(60), "the other files were not asked for"
        if path.endswith("/python_env.yaml"):
            others.set()
        return None

    proxy.choose = choose
    assert (_fetch(proxy.url, tmp_path, version) / "big.bin").stat().st_size == BIG


def test_connection_that_breaks_is_tried_again_from_where_it_broke(
    proxy: FaultProxy, version: ModelVersion, tmp_path: Path
) -> None:
    """Only the rest is asked for, and the file is whole."""
    proxy.choose = _big(Fault(sends=2_000_000))
    folder = _fetch(proxy.url, tmp_path, version)
    assert (folder / "big.bin").read_bytes() == bytes(range(250)) * (BIG // 250)
    assert _ranges(proxy) == ["", "bytes=2000000-"]


def test_file_that_was_replaced_meanwhile_is_fetched_from_its_start(
    proxy: FaultProxy, registry: Any, version: ModelVersion, tmp_path: Path
) -> None:
    """Two halves of two files never become one, with no digest to tell."""

    def choose(_method: str, asked: str, times: int) -> Fault | None:
        if not asked.endswith("/big.bin"):
            return None
        if times == 1:
            httpx.put(registry.url + asked, content=b"\1" * BIG).raise_for_status()
        return None if times else Fault(sends=2_000_000)

    proxy.choose = choose
    assert (_fetch(proxy.url, tmp_path, version) / "big.bin").read_bytes() == b"\1" * BIG


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=503), id="503"),
        pytest.param(Fault(says=1_000_000), id="a short body"),
        pytest.param(Fault(sends=0), id="nothing"),
    ],
)
def test_fault_that_passes_costs_nothing(
    fault: Fault, proxy: FaultProxy, version: ModelVersion, tmp_path: Path
) -> None:
    """An answer that is not the file is asked for again."""
    proxy.choose = _big(fault, first=2)
    assert (_fetch(proxy.url, tmp_path, version) / "big.bin").stat().st_size == BIG


def test_file_that_never_comes_whole_never_loads(
    proxy: FaultProxy, registry: Any, models: Path, tmp_path: Path
) -> None:
    """A server that goes on sending too little is given up, and named; the next start goes on."""
    version = _register(registry.url, models / "plain")
    proxy.choose = lambda _, path, __: Fault(says=1_000) if path.endswith("/big.bin") else None
    with pytest.raises(CannotFetchError, match=r"big\.bin.*3000000"):
        _fetch(proxy.url, tmp_path, version)
    assert not (tmp_path / cache_name(version, proxy.url)).exists()
    proxy.choose = lambda _, __, ___: None
    proxy.asked.clear()
    assert (_fetch(proxy.url, tmp_path, version) / "big.bin").stat().st_size == BIG
    fetched = [one.path.rpartition("/")[2] for one in proxy.asked if "/artifacts/" in one.path]
    assert fetched == ["big.bin"]


def _size(path: Path) -> int:
    """Give the bytes of a file that may be moved away at any time."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_killed_download_goes_on_where_it_was(
    proxy: FaultProxy,
    version: ModelVersion,
    serve: Callable[..., Any],
    wait: Callable[[Callable[[], bool]], None],
    tmp_path: Path,
) -> None:
    """After `kill -9` the next process fetches only what is missing, and serves."""
    hung = threading.Event()
    proxy.choose = _big(Fault(sends=2_500_000, waits=hung))
    uri = f"models:/{version.name}/{version.version}"
    options = ("--tracking-uri", proxy.url, "--cache", str(tmp_path / "cache"))
    partial = (tmp_path / "cache" / cache_name(version, proxy.url)).with_suffix(".partial")

    def is_half() -> bool:
        journal = partial / "journal"
        noted = len(journal.read_text().splitlines()) if journal.exists() else 0
        files = len(list((partial / "files").iterdir())) if noted else 0
        arrived = sum(map(_size, partial.glob("parts/*")))
        return noted >= 4 and noted == files and arrived >= 2_000_000

    with serve(uri, *options) as server:
        wait(is_half)
        assert server.status("/livez") == 200
        server.process.kill()
    hung.set()
    before = proxy.sent()
    proxy.asked.clear()
    with serve(uri, *options) as server:
        server.wait_ready()
        row = {"dataframe_records": [{"hour": 1.0, "day": 2, "late": 0}]}
        assert server.predict(row).status_code == 200
    assert 0 < proxy.sent() <= 1_000_000
    assert before + proxy.sent() >= BIG
    assert not partial.exists()


def test_half_written_file_of_a_killed_download_is_not_trusted(
    proxy: FaultProxy, version: ModelVersion, tmp_path: Path
) -> None:
    """A file left behind that is not what arrived is fetched again."""
    proxy.choose = lambda _, path, __: Fault(says=1_000) if path.endswith("/big.bin") else None
    with pytest.raises(CannotFetchError):
        _fetch(proxy.url, tmp_path, version)
    partial = (tmp_path / cache_name(version, proxy.url)).with_suffix(".partial")
    whole = (partial / "files" / "MLmodel").read_bytes()
    (partial / "files" / "MLmodel").write_bytes(bytes(len(whole)))
    proxy.choose = lambda _, __, ___: None
    assert (_fetch(proxy.url, tmp_path, version) / "MLmodel").read_bytes() == whole


def test_digest_is_recorded_at_first_sight(
    registry: Any, version: ModelVersion, tmp_path: Path
) -> None:
    """What the first process saw is the version's tag, which every other process checks."""
    folder = _fetch(registry.url, tmp_path / "first", version)
    assert _tag(registry.url, version) == digest_folder(folder)
    with fault_proxy(registry.url) as proxy:
        proxy.choose = _big(Fault(flips=True), first=9)
        with pytest.raises(CannotLoadError, match="changed after it was registered"):
            _fetch(proxy.url, tmp_path / "second", version)


def test_digest_of_a_model_without_a_version_is_recorded(
    registry: Any, models: Path, tmp_path: Path
) -> None:
    """A logged model has tags of its own."""
    version = _register(registry.url, models / "plain", is_version=False)
    folder = _fetch(registry.url, tmp_path, version)
    assert _tag(registry.url, version) == digest_folder(folder)


def test_server_that_takes_no_tag_stops_nothing(
    proxy: FaultProxy,
    registry: Any,
    version: ModelVersion,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An account that may only read keeps the digest in the cache, and a log line says so."""
    caplog.set_level("INFO")
    proxy.choose = lambda method, _, __: Fault(status=403) if method == "POST" else None
    folder = _fetch(proxy.url, tmp_path, version)
    assert _tag(registry.url, version) == ""
    assert "recorded in the cache alone" in caplog.text
    assert "403" in caplog.text
    (folder / "big.bin").write_bytes(bytes(BIG))
    proxy.choose = _big(Fault(flips=True), first=9)
    with pytest.raises(CannotLoadError, match="changed after it was registered"):
        _fetch(proxy.url, tmp_path, version)


def test_digest_that_another_process_records_meanwhile_stays(
    proxy: FaultProxy, registry: Any, version: ModelVersion, digest: str, tmp_path: Path
) -> None:
    """Who saw other files than the first stops."""

    def choose(_method: str, path: str, times: int) -> Fault | None:
        if path.endswith("/big.bin") and not times:
            body = {"name": version.name, "version": version.version, "key": DIGEST_TAG}
            address = f"{registry.url}{API}/model-versions/set-tag"
            httpx.post(address, json={**body, "value": digest}).raise_for_status()
        return Fault(flips=True) if path.endswith("/big.bin") else None

    proxy.choose = choose
    with pytest.raises(CannotLoadError, match="changed after it was registered"):
        _fetch(proxy.url, tmp_path, version)
    assert _tag(registry.url, version) == digest


def _flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_altered_cache_is_fetched_anew(
    registry: Any, version: ModelVersion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One flipped byte in the cache never loads."""
    folder = _fetch(registry.url, tmp_path, version)
    before = digest_folder(folder)
    _flip(folder / "big.bin")
    assert digest_folder(_fetch(registry.url, tmp_path, version)) == before
    assert "were altered" in caplog.text


def test_altered_cache_is_not_used_while_the_registry_is_away(
    proxy: FaultProxy, version: ModelVersion, tmp_path: Path
) -> None:
    """Better not to start than to load what was altered."""
    folder = _fetch(proxy.url, tmp_path, version)
    _flip(folder / "MLmodel")
    proxy.choose = lambda _, __, ___: Fault(status=503)
    with pytest.raises(CannotFetchError, match="503"):
        _fetch(proxy.url, tmp_path, version)


def test_what_a_model_leaves_in_its_folder_does_not_count(
    proxy: FaultProxy, version: ModelVersion, tmp_path: Path
) -> None:
    """Compiled code beside a model's own is removed, and nothing is fetched again."""
    folder = _fetch(proxy.url, tmp_path, version)
    (folder / "code" / "__pycache__").mkdir(parents=True)
    (folder / "code" / "__pycache__" / "model.pyc").write_bytes(b"x")
    proxy.asked.clear()
    _fetch(proxy.url, tmp_path, version)
    assert not (folder / "code" / "__pycache__" / "model.pyc").exists()
    assert proxy.sent() == 0


def test_resumed_file_that_is_not_the_recorded_one_is_fetched_anew_once(
    proxy: FaultProxy, registry: Any, models: Path, digest: str, tmp_path: Path
) -> None:
    """With a digest to tell, the rest is taken on trust; what does not fit costs one more try."""
    version = _register(registry.url, models / "plain", digest=digest)

    def choose(_method: str, path: str, times: int) -> Fault | None:
        if not path.endswith("/big.bin"):
            return None
        return Fault(status=503) if times else Fault(sends=2_000_000, flips=True)

    proxy.choose = choose
    with pytest.raises(CannotFetchError, match="503"):
        _fetch(proxy.url, tmp_path, version)
    proxy.choose = lambda _, __, ___: None
    proxy.asked.clear()
    assert digest_folder(_fetch(proxy.url, tmp_path, version)) == digest
    assert _ranges(proxy) == ["bytes=2000000-", ""]


def test_long_download_says_how_far_it_is(
    registry: Any,
    version: ModelVersion,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever reads the log can tell a slow download from a dead one."""
    monkeypatch.setattr(download, "_REPORT_SECONDS", 0.0)
    caplog.set_level("INFO")
    _fetch(registry.url, tmp_path, version)
    assert "Fetched 3 of 3 MB" in caplog.text


def test_check_fetches_and_shows_how_far_it_is(
    registry: Any,
    version: ModelVersion,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A person sees a bar; what the check fetched, the server need not."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    uri = f"models:/{version.name}/{version.version}"
    assert (
        main(["check", "--model", uri, "--tracking-uri", registry.url, "--cache", str(tmp_path)])
        == 0
    )
    printed = capsys.readouterr()
    assert f"[{'#' * 30}] 3 of 3 MB" in printed.err
    assert "It can be served." in printed.out
    with fault_proxy(registry.url) as proxy:
        (tmp_path / cache_name(version, registry.url)).rename(
            tmp_path / cache_name(version, proxy.url)
        )
        _fetch(proxy.url, tmp_path, version)
        assert proxy.sent() == 0
