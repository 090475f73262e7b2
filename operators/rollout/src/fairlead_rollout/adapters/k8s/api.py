"""The Kubernetes API as plain documents, over the official client.

The client's generated models cost memory and time for each object and know no custom resources;
its configuration, authentication and connections are what is worth having.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException

from fairlead_rollout.domain.errors import (
    ConflictError,
    FairleadError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)

Document = dict[str, Any]

MANAGER = "fairlead"
TIMEOUT = (2.0, 10.0)  # seconds to connect, to answer
_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_TOO_MANY, _SERVER_ERROR = 429, 500
_UNKNOWN_FIELD = "failed to create typed patch object"  # a 500 that waiting does not mend
_PLURALS = {
    "Deployment": ("apis/apps/v1", "deployments"),
    "Event": ("apis/events.k8s.io/v1", "events"),
    "EndpointSlice": ("apis/discovery.k8s.io/v1", "endpointslices"),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Pod": ("api/v1", "pods"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "Service": ("api/v1", "services"),
    "ServedModel": ("apis/fairlead.dev/v1alpha1", "servedmodels"),
}


class KubeApi:
    """Sends and gets documents. Safe to use from several threads."""

    def __init__(
        self,
        client: ApiClient,
        timeout: tuple[float, float] = TIMEOUT,
        may_write: Callable[[], bool] = lambda: True,
    ):
        """Build an API.

        Args:
            client: The connections.
            timeout: Seconds to connect, and to answer.
            may_write: Asked before every write: another replica may have taken over.
        """
        self._client = client
        self._timeout = timeout
        self._may_write = may_write

    def get(self, kind: str, namespace: str, name: str) -> Document:
        """Return an object.

        Raises:
            NotFoundError: There is none of that name.
            UnavailableError: The API server does not answer.
        """
        return self._call("GET", path_of(kind, namespace, name))

    def has_namespace(self, name: str) -> bool:
        """Tell whether there is such a namespace; one that nobody says no to counts as there."""
        try:
            self._call("GET", f"api/v1/namespaces/{quote(name, safe='')}")
        except NotFoundError:
            return False
        except FairleadError:
            return True
        return True

    def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Document]:
        """Return the objects of a kind that have all of these labels."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        query = {"labelSelector": selector} if selector else {}
        found: list[Document] = self._call("GET", path_of(kind, namespace), query)["items"]
        return found

    def apply(self, document: Document, manager: str = MANAGER, *, force: bool = True) -> Document:
        """Create an object or change it to what the document says (server-side apply).

        Raises:
            ConflictError: Another manager's field says otherwise, and is not to be taken by force.
        """
        metadata = document["metadata"]
        path = path_of(document["kind"], metadata["namespace"], metadata["name"])
        query = {"fieldManager": manager, "force": str(force).lower()}
        return self._call("PATCH", path, query, document, _APPLY)

    def create(self, document: Document) -> Document:
        """Create an object.

        Raises:
            ConflictError: There is one already.
        """
        path = path_of(document["kind"], document["metadata"]["namespace"])
        return self._call("POST", path, {"fieldManager": MANAGER}, document)

    def replace(self, document: Document, subresource: str = "") -> Document:
        """Replace an object, or its status, that has not changed since it was read.

        Raises:
            ConflictError: Somebody has changed it since.
        """
        metadata = document["metadata"]
        path = path_of(document["kind"], metadata["namespace"], metadata["name"], subresource)
        return self._call("PUT", path, {"fieldManager": MANAGER}, document)

    def patch(self, kind: str, namespace: str, name: str, change: Document) -> Document:
        """Merge a change into an object."""
        path = path_of(kind, namespace, name)
        return self._call("PATCH", path, {"fieldManager": MANAGER}, change, _MERGE)

    def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete an object and what belongs to it; one that is not there is deleted already.

        Raises:
            ConflictError: There is another object of that name.
        """
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            self._call("DELETE", path_of(kind, namespace, name), body=options)
        except NotFoundError:
            return

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
        content_type: str = _JSON,
    ) -> Document:
        if method != "GET" and not self._may_write():
            raise UnavailableError(f"{method} {path}: not sent, as this replica does not lead")
        url = f"{self._client.configuration.host}/{path}"
        url += f"?{urlencode(query)}" if query else ""
        headers = {"Accept": _JSON, "Content-Type": content_type}
        self._authenticate(headers, f"{method} {path}")
        # The client turns a document into JSON itself, but only for a content type of that name.
        sent = json.dumps(body) if content_type == _APPLY else body
        try:
            answer = self._client.call_api(
                method, url, headers, sent, _request_timeout=self._timeout
            )
            data = answer.read()  # type: ignore[no-untyped-call]
        except ApiException as error:
            raise _translated(error, f"{method} {path}") from error
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(f"{method} {path}: {type(error).__name__}") from error
        if not 200 <= answer.status < 300:  # noqa: PLR2004 -- success
            raise _refused(answer.status, data, f"{method} {path}")
        try:
            document: Document = json.loads(data)
        except ValueError as error:
            raise UnavailableError(f"{method} {path}: the answer is not JSON") from error
        return document

    def _authenticate(self, headers: dict[str, str], what: str) -> None:
        try:
            self._client.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)
        except (config.ConfigException, OSError) as error:  # kubelet is changing the token's file
            raise UnavailableError(f"{what}: the account's token cannot be read") from error


def path_of(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    """Return the path of an object, or of all of a kind in a namespace."""
    group, plural = _PLURALS[kind]
    place, last = quote(namespace, safe=""), quote(name, safe="")
    parts = [group, "namespaces", place, plural, last, subresource]
    return "/".join(part for part in parts if part)


def connect(context: str | None = None) -> ApiClient:
    """Return a client for the cluster this pod is in, or that the kubeconfig names.

    Raises:
        FairleadError: There is neither.
    """
    configuration = Configuration()
    try:
        try:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                context=context, client_configuration=configuration
            )
    except config.ConfigException as error:
        raise FairleadError(
            "there is no cluster to talk to: this is no pod, and the kubeconfig names none "
            "(set KUBECONFIG, or choose a context with --context)"
        ) from error
    configuration.retries = False
    return ApiClient(configuration)


def current_namespace(context: str | None = None) -> str:
    """Return the namespace that the kubeconfig's context names, else `default`."""
    try:
        contexts, active = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    except config.ConfigException:
        return "default"
    chosen = next((c for c in contexts if c["name"] == context), active)
    namespace: str = chosen["context"].get("namespace") or "default"
    return namespace


def _translated(error: ApiException, what: str) -> FairleadError:
    return _refused(int(error.status or 0), error.body, what)


def _refused(status: int, body: Any, what: str) -> FairleadError:
    why = _message(body)
    message = f"{what}: {status} {why}".rstrip()
    if why.startswith(_UNKNOWN_FIELD):
        return RefusedError(message)
    kinds: Mapping[int, type[FairleadError]] = {
        **dict.fromkeys((400, 403, 422), RefusedError),
        404: NotFoundError,
        409: ConflictError,
    }
    if status == _TOO_MANY or status >= _SERVER_ERROR or not status:
        return UnavailableError(message)
    return kinds.get(status, FairleadError)(message)


def _message(body: Any) -> str:
    try:
        status = json.loads(body or b"{}")
    except ValueError:
        return ""
    return str(status.get("message") or "") if isinstance(status, dict) else ""
