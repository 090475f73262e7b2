"""Two namespaces of a real cluster, for the tests that also run against the small API server."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from gateway_kube_api import MODELS, Document, path_of
from gateway_lab import wait_for
from kubernetes import client

from fairlead_gateway.adapters.kubernetes import connect

_CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_DEFINITION: Document = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "servedmodels.fairlead.dev"},
    "spec": {
        "group": "fairlead.dev",
        "scope": "Namespaced",
        "names": {"kind": "ServedModel", "plural": "servedmodels", "singular": "servedmodel"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": _OPEN, "status": _OPEN},
                    }
                },
            }
        ],
    },
}


class Api:
    """The verbs the tests need, on plain JSON."""

    def __init__(self) -> None:
        """Connect."""
        self.client: client.ApiClient = connect()

    def call(self, method: str, path: str, body: Any = None, kind: str = "json") -> Document:
        """Ask the API server; an error names what it said."""
        request = self.client.param_serialize(
            method,
            path,
            header_params={"Accept": "application/json", "Content-Type": f"application/{kind}"},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = self.client.call_api(*request, _request_timeout=10)
        content = answer.read()
        if not 200 <= answer.status <= 299:
            raise ApiError(answer.status, content.decode())
        return json.loads(content)


class ApiError(Exception):
    """The API server did not do it."""

    def __init__(self, code: int, body: str) -> None:
        """Remember the code."""
        super().__init__(f"{code} {body}")
        self.code = code


@contextlib.contextmanager
def served_models_defined(api: Api) -> Iterator[None]:
    """Define ServedModel, unless it is; take away only what was made here."""
    made = False
    try:
        api.call("POST", _CRD, _DEFINITION)
        made = True
    except ApiError as error:
        if error.code != 409:
            raise
    try:
        wait_for(lambda: _answers(api, MODELS.format("default")))
        yield
    finally:
        if made:
            api.call("DELETE", f"{_CRD}/servedmodels.fairlead.dev")


def _answers(api: Api, path: str) -> bool:
    try:
        api.call("GET", path)
    except ApiError as error:
        if error.code == 404:
            return False
        raise
    return True


class RealCluster:
    """Two namespaces of the cluster the kubeconfig leads to."""

    kubeconfig: str | None = None

    def __init__(self, name: str) -> None:
        """Make the namespaces."""
        self.api = Api()
        self.namespaces = (f"{name}-one", f"{name}-two")
        for namespace in self.namespaces:
            self.api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})

    def create(self, document: Document) -> None:
        """Make an object."""
        self.api.call("POST", path_of(document), document)

    def replace(self, document: Document) -> None:
        """Replace an object's spec, labels and finalizers."""
        metadata = {"finalizers": [], **document["metadata"]}
        self._patch(_place(document), {**document, "metadata": metadata})

    def status(self, namespace: str, name: str, status: Document | None) -> None:
        """Replace a ServedModel's status; take it away with None."""
        path = f"{MODELS.format(namespace)}/{name}"
        old = self.api.call("GET", path)
        old.pop("status", None)
        new = old if status is None else {**old, "status": status}
        self.api.call("PUT", f"{path}/status", new)

    def delete(self, document: Document) -> None:
        """Delete an object; one with finalizers stays until they are gone."""
        self.api.call("DELETE", _place(document))

    def tick(self) -> None:
        """Wait until what is made next is a second younger."""
        second = int(time.time())
        wait_for(lambda: int(time.time()) > second)

    def close(self) -> None:
        """Take the namespaces away."""
        for namespace in self.namespaces:
            self.api.call("DELETE", f"/api/v1/namespaces/{namespace}")
        self.api.client.close()

    def _patch(self, path: str, body: Document) -> None:
        self.api.call("PATCH", path, body, "merge-patch+json")


def _place(document: Document) -> str:
    return f"{path_of(document)}/{document['metadata']['name']}"
