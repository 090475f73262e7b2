"""Fetches model versions from an MLflow server over REST, without MLflow."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import httpx

from fairlead_serving.adapters.cache import (
    Source,
    digest_folder,
    is_unaltered,
    keep,
    locked,
    read_kept,
)
from fairlead_serving.adapters.download import Download, LoggedProgress, RemoteFile
from fairlead_serving.app.ports import Progress
from fairlead_serving.domain.digest import DIGEST_TAG, digest_of
from fairlead_serving.domain.errors import CannotFetchError, CannotLoadError
from fairlead_serving.domain.source import ModelVersion, cache_name

_log = logging.getLogger(__name__)

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_LEFT_BY = "uri"
_TIMEOUT = httpx.Timeout(15.0, connect=5.0)  # without a byte; what is away is told within 30 s
_NEVER = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


class Registry:
    """One MLflow server and the folder in which fetched versions are kept.

    Args:
        tracking_uri: The server's address.
        cache: The folder.
        progress: Hears how far a download is; the log does if None.
    """

    def __init__(self, tracking_uri: str, cache: Path, progress: Progress | None = None) -> None:
        self._progress = progress or LoggedProgress()
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
        the server still names the same files for the version. Its files are compared with the
        digest recorded at first sight before every use; altered ones are fetched anew.

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
            with locked(target.with_suffix(".lock")):
                return self._cached_or_anew(version, target)
        except OSError as error:
            raise CannotFetchError(
                f"The model cannot be written to the cache '{self._cache}': {error.strerror}."
            ) from error

    def _cached_or_anew(self, version: ModelVersion, target: Path) -> Path:
        kept = read_kept(target)
        is_whole = kept is not None and is_unaltered(target, kept)
        if kept and not is_whole:
            _log.warning("The cached files of the model were altered; they are not used")
        try:
            source = self._source(version)
        except (CannotFetchError, CannotLoadError) as error:
            # What was deleted may still be what a plan sends traffic to.
            if not is_whole:
                raise
            _log.warning("The model comes from the cache. %s", error)
            return target
        if kept and kept.source.uri == source.uri:
            source = replace(source, digest=source.digest or kept.source.digest)
        if is_whole and kept and kept.source == source:
            return target
        return self._fetch_anew(version, source, target)

    def _source(self, version: ModelVersion) -> Source:
        """Ask where the files of a version are, and what their digest should be."""
        if version.model_id:
            return Source(self._logged_model(version.model_id)["artifact_uri"], self._tag(version))
        query = {"name": version.name, "version": version.version}
        uri = self._get(f"{_API}/model-versions/get-download-uri", query)["artifact_uri"]
        if uri.startswith("models:/m-"):
            uri = self._logged_model(uri.removeprefix("models:/"))["artifact_uri"]
        return Source(uri, self._tag(version))

    def _logged_model(self, model_id: str) -> dict[str, Any]:
        info: dict[str, Any] = self._get(f"{_API}/logged-models/{model_id}", {})["model"]["info"]
        return info

    def _tag(self, version: ModelVersion) -> str:
        """Ask for the digest that is recorded at the server; empty if none is."""
        if version.model_id:
            holder = self._logged_model(version.model_id)
        else:
            query = {"name": version.name, "version": version.version}
            holder = self._get(f"{_API}/model-versions/get", query)["model_version"]
        tags = {tag["key"]: tag.get("value", "") for tag in holder.get("tags", [])}
        return str(tags.get(DIGEST_TAG, ""))

    def _fetch_anew(self, version: ModelVersion, source: Source, target: Path) -> Path:
        partial = target.with_suffix(".partial")
        goes_on = _left_by(partial) == source.uri
        files, digest = self._copy(source, partial)
        if goes_on and source.digest not in ("", digest):
            shutil.rmtree(partial)  # Some of it may be of another time.
            files, digest = self._copy(source, partial)
        if source.digest not in ("", digest):
            shutil.rmtree(partial)
            raise _altered(digest, source.digest)
        if not source.digest:
            self._record(version, digest)
        keep(files, target, Source(source.uri, digest))
        shutil.rmtree(partial)
        return target

    def _copy(self, source: Source, partial: Path) -> tuple[Path, str]:
        """Bring the files here; give the folder they are in, and their digest."""
        parts = urlsplit(source.uri)
        if _left_by(partial) != source.uri:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        if parts.scheme == "mlflow-artifacts":
            (partial / _LEFT_BY).write_text(source.uri, encoding="utf-8")
            return self._download(unquote(parts.path).strip("/"), source, partial)
        if parts.scheme in ("", "file"):
            _copy_folder(Path(unquote(parts.path)), partial / "files")
            return partial / "files", digest_folder(partial / "files")
        raise CannotLoadError(
            f"The model's files are at {parts.scheme}://, which only the MLflow server "
            "can read; start it with --serve-artifacts and register the model again."
        )

    def _download(self, root: str, source: Source, partial: Path) -> tuple[Path, str]:
        listed = list(self._walk(root))
        if not listed:
            raise CannotLoadError("The registry names a folder for the model that has no files.")
        download = Download(
            self._client,
            partial,
            _failure,
            is_checked=bool(source.digest),
            progress=self._progress,
        )
        try:
            return download.files, digest_of(download.run(listed).items())
        except httpx.HTTPError as error:
            raise CannotFetchError(self._away(_ARTIFACTS, error)) from error

    def _walk(self, root: str, folder: str = "") -> Iterator[RemoteFile]:
        path = f"{root}/{folder}".rstrip("/")
        for item in self._get(_ARTIFACTS, {"path": path}).get("files", []):
            name = _safe(f"{folder}/{item['path']}".lstrip("/"))
            if item.get("is_dir"):
                yield from self._walk(root, name)
            else:
                size = item.get("file_size")
                address = f"{_ARTIFACTS}/{quote(f'{root}/{name}')}"
                yield RemoteFile(name, address, None if size is None else int(size))

    def _record(self, version: ModelVersion, digest: str) -> None:
        """Record a digest at the server, so that every other process checks the same.

        The first one that is there stays. MLflow cannot write only where nothing is written yet,
        so what is there is read before and after: of two processes that saw different files in
        the same instant at least one stops here, and the other at its next start.
        """
        try:
            if not self._tag(version):
                self._write_tag(version, digest)
            recorded = self._tag(version)
        except (CannotFetchError, CannotLoadError) as error:
            _log.info("The digest is recorded in the cache alone, not as a tag. %s", error)
            return
        if recorded not in ("", digest):
            raise _altered(digest, recorded)

    def _write_tag(self, version: ModelVersion, digest: str) -> None:
        tag = {"key": DIGEST_TAG, "value": digest}
        if version.model_id:
            self._send("PATCH", f"{_API}/logged-models/{version.model_id}/tags", {"tags": [tag]})
        else:
            named = {"name": version.name, "version": version.version}
            self._send("POST", f"{_API}/model-versions/set-tag", {**named, **tag})

    def _send(self, method: str, path: str, body: Mapping[str, object]) -> None:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise CannotFetchError(self._away(path, error)) from error
        if not response.is_success:
            raise _failure(response)

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
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(source, into)


def _left_by(partial: Path) -> str:
    """Tell the address of the files that a killed download left behind; empty if none did."""
    try:
        return (partial / _LEFT_BY).read_text(encoding="utf-8")
    except OSError:
        return ""


def _altered(actual: str, recorded: str) -> CannotLoadError:
    return CannotLoadError(
        f"The model's files have the digest {actual[:12]}…, but {recorded[:12]}… is recorded "
        f"({DIGEST_TAG}); they were changed after it was registered."
    )
