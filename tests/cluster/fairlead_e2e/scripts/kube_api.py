"""Tries requests at the API server by the pod's own service account. Runs in a pod."""

import json
import pathlib
import ssl
import sys
import urllib.error
import urllib.request

ACCOUNT = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")


def status_of(method, path):
    """Return the HTTP status that a request gets."""
    token = (ACCOUNT / "token").read_text()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/merge-patch+json"}
    body = b"{}" if method == "PATCH" else None
    url = f"https://kubernetes.default.svc{path}"
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    trusted = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
    try:
        with urllib.request.urlopen(request, timeout=10, context=trusted) as answer:  # noqa: S310
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


if __name__ == "__main__":
    sys.stdout.write(json.dumps([status_of(*call.split(" ", 1)) for call in sys.argv[1:]]))
