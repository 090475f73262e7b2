"""Ask the gateway, the experiments service and the API server; say what is wrong with which."""

# ruff: noqa: INP001, S310, T201 - A script for a pod: it prints, and asks the URLs it is given.

import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = "https://kubernetes.default.svc/apis/fairlead.dev/v1alpha1/namespaces"
OK = 200


def any_certificate() -> ssl.SSLContext:
    """Take any certificate: the gateway's is made for its name outside, and no secret is sent."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def ask(url: str, context: ssl.SSLContext, token: str = "") -> tuple[int, str]:
    """Return the answer's status and text; 0 and the reason where there is none."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")[:300]
    except OSError as error:
        return 0, str(error)


def is_ready(name: str, url: str, patience: float) -> bool:
    """Wait until a service answers 200; say so, or what it answered last."""
    until = time.monotonic() + patience
    status, text = ask(url, any_certificate())
    while status != OK and time.monotonic() < until:
        time.sleep(1)
        status, text = ask(url, any_certificate())
    print(f"{name}: ready" if status == OK else f"{name}: {url} answered {status} {text}")
    return status == OK


def knows_served_models(namespace: str) -> bool:
    """Tell whether the API server lists a namespace's ServedModels."""
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    token = (ACCOUNT / "token").read_text()
    status, text = ask(f"{API}/{namespace}/servedmodels", context, token)
    found = status == OK and json.loads(text)["kind"] == "ServedModelList"
    reason = {404: "the CRD is not installed", 403: "the Role is missing"}.get(status, text)
    print(f"ServedModels in {namespace}: " + ("known" if found else f"{status}, {reason}"))
    return found


def main(patience: str, gateway: str, experiments: str, *namespaces: str) -> int:
    """Check everything, so that one run names all that is wrong."""
    checks = [
        is_ready("gateway", f"{gateway}/-/ready", float(patience)),
        is_ready("experiments", f"{experiments}/readyz", float(patience)),
        *(knows_served_models(namespace) for namespace in namespaces),
    ]
    return 0 if all(checks) else 1


sys.exit(main(*sys.argv[1:]))
