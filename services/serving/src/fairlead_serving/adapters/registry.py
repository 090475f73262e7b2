"""Fetches model versions from an MLflow server over REST, without MLflow."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import httpx

from fairlead_serving.domain.digest import DIGEST_TAG, digest_of
from fairlead_serving.domain.errors import CannotFetchError, CannotLoadError
from fairlead_serving.domain.source import ModelVersion, cache_name

_log = logging.getLogger(__name__)

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_MARKER = "fairlead-complete.json"
_TIMEOUT = httpx.Timeout(15.0, connect=5.0)  # without a byte; what is away is told within 30 s
_NEVER = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


class Registry:
    """One MLflow server and the folder in which fetched versions are kept.

    Args:
        tracking_uri: The server's address.
        cache: The folder.
    """

    def __init__(self, tracking_uri: str, cache: Path) -> None:
        self._uri = tracking_uri.rstrip("/")
        self._cache = cache
        self._client = httpx.Client(
            base_url=self._uri,
            auth=_credentials(),
            timeout=_TIMEOUT,
            follow_redirects=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def fetch(self, version: ModelVersion) -> Path:
        """Fetch a version, or find it in the cache.

        A whole cached one is used when the server is away or no longer has the version, and when
        the server still names the same files for the version.

        Args:
            version: Which.

        Returns:
            The folder.

        Raises:
            CannotFetchError: The server does not answer now, and nothing is cached.
            CannotLoadError: The version is neither there nor cached, or its files are not those
                recorded.
        """
        target = self._cache / cache_name(version, self._uri)
        try:
            with _locked(target.with_suffix(".lock")):
                return self._cached_or_anew(version, target)
        except OSError as error:
            raise CannotFetchError(
                f"The model cannot be written to the cache '{self._cache}': {error.strerror}."
            ) from error

    def _cached_or_anew(self, version: ModelVersion, target: Path) -> Path:
        cached = _read_marker(target)
        try:
            source = self._source(version)
        except (CannotFetchError, CannotLoadError) as error:
            # What was deleted may still be what a plan sends traffic to.
            if cached is None:
                raise
            _log.warning("The model comes from the cache. %s", error)
            return target
        return target if cached == source else self._fetch_anew(source, target)

    def _source(self, version: ModelVersion) -> dict[str, str]:
        """Ask where the files of a version are, and what their digest should be."""
        if version.model_id:
            return {"uri": self._logged_model_uri(version.model_id), "digest": ""}
        query = {"name": version.name, "version": version.version}
        record = self._get(f"{_API}/model-versions/get", query)["model_version"]
        uri = self._get(f"{_API}/model-versions/get-download-uri", query)["artifact_uri"]
        tags = {tag["key"]: tag.get("value", "") for tag in record.get("tags", [])}
        if uri.startswith("models:/m-"):
            uri = self._logged_model_uri(uri.removeprefix("models:/"))
        return {"uri": uri, "digest": tags.get(DIGEST_TAG, "")}

    def _logged_model_uri(self, model_id: str) -> str:
        answer = self._get(f"{_API}/logged-models/{model_id}", {})
        return str(answer["model"]["info"]["artifact_uri"])

    def _fetch_anew(self, source: dict[str, str], target: Path) -> Path:
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self._copy(source["uri"], partial)
        _check_digest(partial, source["digest"])
        (partial / _MARKER).write_text(json.dumps(source), encoding="utf-8")
        # The marker came last and the rename is atomic: a killed download is never a model.
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return target

    def _copy(self, uri: str, into: Path) -> None:
        parts = urlsplit(uri)
        if parts.scheme == "mlflow-artifacts":
            self._download(unquote(parts.path).strip("/"), into)
        elif parts.scheme in ("", "file"):
            _copy_folder(Path(unquote(parts.path)), into)
        else:
            raise CannotLoadError(
                f"The model's files are at {parts.scheme}://, which only the MLflow server "
                "can read; start it with --serve-artifacts and register the model again."
            )

    def _download(self, root: str, into: Path) -> None:
        found = False
        for path, is_folder in self._walk(root):
            found = True
            local = into / path
            if is_folder:
                local.mkdir(parents=True, exist_ok=True)
            else:
                self._download_file(f"{root}/{path}", local)
        if not found:
            raise CannotLoadError("The registry names a folder for the model that has no files.")

    def _walk(self, root: str, folder: str = "") -> Iterator[tuple[str, bool]]:
        path = f"{root}/{folder}".rstrip("/")
        for item in self._get(_ARTIFACTS, {"path": path}).get("files", []):
            name = _safe(f"{folder}/{item['path']}".lstrip("/"))
            yield name, bool(item.get("is_dir"))
            if item.get("is_dir"):
                yield from self._walk(root, name)

    def _download_file(self, path: str, local: Path) -> None:
        try:
            with self._client.stream("GET", f"{_ARTIFACTS}/{quote(path)}") as response:
                if not response.is_success:
                    response.read()
                    raise _failure(response)
                with local.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
        except httpx.HTTPError as error:
            raise CannotFetchError(self._away(_ARTIFACTS, error)) from error

    def _get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        try:
            response = self._client.get(path, params=dict(query))
        except httpx.HTTPError as error:
            raise CannotFetchError(self._away(path, error)) from error
        if not response.is_success:
            raise _failure(response)
        try:
            answer: dict[str, Any] = response.json()
        except ValueError as error:
            raise CannotFetchError("The registry's answer is not JSON.") from error
        return answer

    def _away(self, path: str, error: httpx.HTTPError) -> str:
        host = urlsplit(self._uri).netloc.rpartition("@")[2]
        if path == _ARTIFACTS and not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return (
                f"The registry at {host} answers, but gets nothing from its artifact store: "
                f"{type(error).__name__}."
            )
        return f"The registry at {host} cannot be reached: {type(error).__name__}."


def _credentials() -> httpx.Auth | None:
    """Take the credentials from where MLflow takes them."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        return httpx.BasicAuth(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return _Bearer(token) if token else None


class _Bearer(httpx.Auth):
    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["authorization"] = f"Bearer {self._token}"
        yield request


def _failure(response: httpx.Response) -> Exception:
    code = _error_code(response)
    if code in _NEVER:
        return CannotLoadError(f"The registry does not have this model version ({code}).")
    return CannotFetchError(f"The registry answered {response.status_code} {code}".rstrip() + ".")


def _error_code(response: httpx.Response) -> str:
    try:
        return str(response.json().get("error_code", ""))
    except (ValueError, AttributeError):
        return ""


def _safe(path: str) -> str:
    """Refuse a path that would leave the folder: the server's word is not enough."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise CannotLoadError("The registry names a file outside the model's folder.")
    return path


def _copy_folder(source: Path, into: Path) -> None:
    if not source.is_dir():
        raise CannotLoadError(
            f"The model's files are at '{source}' on the machine that registered it, not here; "
            "start the MLflow server with --serve-artifacts and register the model again."
        )
    shutil.copytree(source, into, dirs_exist_ok=True)


def _check_digest(folder: Path, wanted: str) -> None:
    if not wanted:
        return
    actual = digest_folder(folder)
    if actual != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        raise CannotLoadError(
            f"The model's files have the digest {actual[:12]}…, but the version's tag "
            f"{DIGEST_TAG} says {wanted[:12]}…; they were changed after it was registered."
        )


def digest_folder(folder: Path) -> str:
    """Digest the files of a folder; see `fairlead_serving.domain.digest`.

    Args:
        folder: The model's folder.

    Returns:
        The digest in hexadecimal.
    """
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != _MARKER)
    return digest_of((path.relative_to(folder).as_posix(), _checksum(path)) for path in files)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_marker(target: Path) -> dict[str, str] | None:
    try:
        marker: dict[str, str] = json.loads((target / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time fetch a version; the others find it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
