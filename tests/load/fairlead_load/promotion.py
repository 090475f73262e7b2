"""Promotes a version through MLflow's REST API, as a person would.

The account is MLflow's own: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import base64
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_API: Final = "/api/2.0/mlflow"
_PATIENCE: Final = 30.0  # seconds


class PromotionError(Exception):
    """Nothing was promoted; the message says why and never holds the account."""


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version and its stage."""

    number: int
    stage: str


def choose(versions: Iterable[Version], current: int | None) -> int:
    """Answer the version to promote: the lowest that is not in production now.

    Args:
        versions: All there are.
        current: Where the alias points, or None where the stage decides.

    Raises:
        PromotionError: There is none.
    """
    others = [v.number for v in versions if not _is_current(v, current)]
    if not others:
        raise PromotionError("there is no version to promote; register a second one")
    return min(others)


def _is_current(version: Version, current: int | None) -> bool:
    return version.stage == "Production" if current is None else version.number == current


class Registry:
    """MLflow's model registry.

    Args:
        url: The tracking server's address.
        model: The registered model's name.
        environment: Where the account is.
    """

    def __init__(self, url: str, model: str, environment: Mapping[str, str] = os.environ) -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._headers = {"content-type": "application/json", **_account(environment)}

    def promote(self, version: int | None = None, alias: str = "") -> int:
        """Set a version to Production, or point the alias at it; answer which one.

        Raises:
            PromotionError: MLflow does not answer, refuses, or has no version to promote.
        """
        number = version or choose(self.versions(), self._aliased(alias) if alias else None)
        key = {"name": self._model, "version": str(number)}
        if alias:
            self._call("POST", "/registered-models/alias", {**key, "alias": alias})
        else:
            body = {**key, "stage": "Production", "archive_existing_versions": True}
            self._call("POST", "/model-versions/transition-stage", body)
        return number

    def versions(self) -> list[Version]:
        """Answer all versions of the model."""
        quoted = self._model.replace("'", "''")
        query = urllib.parse.urlencode({"filter": f"name = '{quoted}'", "max_results": 1000})
        found = self._call("GET", f"/model-versions/search?{query}").get("model_versions", ())
        return [Version(int(v["version"]), v.get("current_stage", "")) for v in found]

    def _aliased(self, alias: str) -> int:
        query = urllib.parse.urlencode({"name": self._model, "alias": alias})
        found = self._call("GET", f"/registered-models/alias?{query}")
        return int(found["model_version"]["version"])

    def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - the operator's own address
            f"{self._url}{_API}{path}", data=data, headers=self._headers, method=method
        )
        what = f"{method} {path.partition('?')[0]} at MLflow"
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:  # noqa: S310
                document: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise PromotionError(f"{what}: HTTP {error.code}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise PromotionError(f"{what}: {type(reason).__name__}") from error
        return document


def _account(environment: Mapping[str, str]) -> dict[str, str]:
    user = environment.get("MLFLOW_TRACKING_USERNAME", "")
    password = environment.get("MLFLOW_TRACKING_PASSWORD", "")
    if not user:
        return {}
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"authorization": f"Basic {encoded}"}
