"""ServedModels in a folder: the local stand-in for the Kubernetes API."""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from fairlead_rollout.adapters.files import locked, read_json, write_json
from fairlead_rollout.adapters.home import Home
from fairlead_rollout.adapters.schema import complete_manifest, read_spec
from fairlead_rollout.app.ports import ServedModel
from fairlead_rollout.domain.actions import EmitEvent
from fairlead_rollout.domain.errors import InvalidSpecError, NotFoundError
from fairlead_rollout.domain.snapshot import Request, Verb
from fairlead_rollout.domain.spec import ServedModelSpec, parse_spec
from fairlead_rollout.domain.status import (
    Status,
    format_time,
    from_document,
    parse_time,
    to_document,
)

THEIRS = ("name", "labels", "annotations")  # of the metadata; the rest is ours


class FolderStore:
    """Keeps each ServedModel in a folder of its own.

    `manifest.json` is what a person applied (and asked for), `status.json` is the controller's,
    `events.jsonl` grows by a line for each event.
    """

    def __init__(self, home: Home):
        self._root = home.served_models

    def names(self) -> tuple[str, ...]:
        """Return the names of all ServedModels."""
        return tuple(sorted(path.parent.name for path in self._root.glob("*/manifest.json")))

    def read(self, name: str) -> ServedModel | None:
        """Return a ServedModel, or None when there is none of that name."""
        manifest = read_json(self._manifest(name))
        if manifest is None:
            return None
        spec, problem = _read_spec(manifest)
        metadata = manifest["metadata"]
        return ServedModel(
            key=name,
            name=name,
            uid=metadata["uid"],
            generation=metadata["generation"],
            spec=spec,
            problem=problem,
            status=_read_status(self._status(name)),
            request=_read_request(metadata.get("request")),
        )

    def manifest(self, name: str) -> Mapping[str, Any]:
        """Return the applied document.

        Raises:
            NotFoundError: There is no ServedModel of that name.
        """
        manifest = read_json(self._manifest(name))
        if manifest is None:
            known = ", ".join(self.names()) or "none; 'fairlead apply' makes one"
            raise NotFoundError(f"there is no served model {name!r} (there are: {known})")
        document: Mapping[str, Any] = manifest
        return document

    def write_status(self, name: str, status: Status) -> None:
        """Replace the status, whole or not at all."""
        write_json(self._status(name), to_document(status))

    def hold(self, key: str, *, held: bool) -> None:
        """Do nothing: a folder's ServedModel is not deleted while its controller runs."""

    def apply(self, manifest: Any, now: datetime) -> tuple[str, str]:
        """Create or replace a ServedModel.

        Returns:
            Its name, and what was done: `created`, `configured` or `unchanged`.

        Raises:
            InvalidSpecError: The document is wrong; the message names the field.
        """
        document = complete_manifest(manifest)
        parse_spec(document["spec"])
        name: str = document["metadata"]["name"]
        with locked(self._root / name / ".lock"):
            old = read_json(self._manifest(name))
            if old is not None and old["spec"] == document["spec"]:
                return name, "unchanged"
            kept: dict[str, Any] = (
                old["metadata"] if old else {"uid": str(uuid4()), "generation": 0}
            )
            created = kept.get("creationTimestamp", format_time(now))
            document["metadata"] = {
                **kept,
                **{k: v for k, v in document["metadata"].items() if k in THEIRS},
                "generation": kept["generation"] + 1,
                "creationTimestamp": created,
            }
            write_json(self._manifest(name), document)
        return name, "configured" if old else "created"

    def ask(self, name: str, request: Request) -> None:
        """Leave a person's request for the controller."""
        with locked(self._root / name / ".lock"):
            document = dict(self.manifest(name))
            document["metadata"] = {**document["metadata"], "request": to_document(request)}
            write_json(self._manifest(name), document)

    def emit(self, name: str, event: EmitEvent, at: datetime) -> None:
        """Keep an event; the same id is kept once."""
        path = self._root / name / "events.jsonl"
        if any(entry["id"] == event.id for entry in self.events(name)):
            return
        line = json.dumps({**to_document(event), "at": format_time(at)}) + "\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(line if _ends_whole(path) else f"\n{line}")

    def events(self, name: str) -> tuple[Mapping[str, Any], ...]:
        """Return the events, oldest first; a half-written last line is left out."""
        try:
            lines = (self._root / name / "events.jsonl").read_text("utf-8").splitlines()
        except OSError:
            return ()
        return tuple(entry for line in lines if (entry := _parse_line(line)) is not None)

    def created_at(self, name: str) -> datetime:
        """Return when the ServedModel was first applied."""
        return parse_time(self.manifest(name)["metadata"]["creationTimestamp"])

    def changes(self) -> Mapping[str, int]:
        """Return a number per ServedModel that changes whenever its manifest does."""
        stamps = {}
        for name in self.names():
            try:
                stamps[name] = self._manifest(name).stat().st_mtime_ns
            except OSError:
                continue
        return stamps

    def _manifest(self, name: str) -> Path:
        return self._root / name / "manifest.json"

    def _status(self, name: str) -> Path:
        return self._root / name / "status.json"


class Changes:
    """Tells which ServedModels a person has changed since it was last asked."""

    def __init__(self, store: FolderStore):
        self._store = store
        self._seen: Mapping[str, int] = {}

    def __call__(self) -> frozenset[str]:
        """Return the changed names."""
        now = self._store.changes()
        changed = frozenset(name for name, stamp in now.items() if self._seen.get(name) != stamp)
        self._seen = now
        return changed


def _read_spec(manifest: Any) -> tuple[ServedModelSpec | None, str]:
    applied = {**manifest, "metadata": {"name": manifest["metadata"]["name"]}}
    try:
        return read_spec(applied), ""
    except InvalidSpecError as error:
        return None, str(error)


def _read_status(path: Path) -> Status | None:
    document = read_json(path)
    try:
        return from_document(document)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # a lost status; the controller rebuilds it


def _read_request(document: Any) -> Request | None:
    return Request(**{**document, "verb": Verb(document["verb"])}) if document else None


def _ends_whole(path: Path) -> bool:
    """Say whether a file's last line was written to its end; on a full disk one is not."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in {b"", b"\n"}


def _parse_line(line: str) -> Mapping[str, Any] | None:
    try:
        entry: Mapping[str, Any] = json.loads(line)
    except ValueError:
        return None
    return entry
