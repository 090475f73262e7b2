"""Ask the gateway, the experiments service and the API server; say what is wrong with which."""

import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE = 60.0


def ask(url, *, token=None, context=None):
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


def is_ready(name, url):
    """Wait until a service answers 200; say so, or what it answered last."""
    until = time.monotonic() + PATIENCE
    status, text = ask(url)
    while status != 200 and time.monotonic() < until:
        time.sleep(1)
        status, text = ask(url)
    print(f"{name}: ready" if status == 200 else f"{name}: {url} answered {status} {text}")
    return status == 200


def knows_served_models(namespace):
    """Tell whether the API server lists a namespace's ServedModels."""
    url = f"https://kubernetes.default.svc/apis/fairlead.dev/v1alpha1/namespaces/{namespace}/servedmodels"
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    status, text = ask(url, token=(ACCOUNT / "token").read_text(), context=context)
    found = status == 200 and json.loads(text)["kind"] == "ServedModelList"
    reason = {404: "the CRD is not installed", 403: "the Role is missing"}.get(status, text)
    print(f"ServedModels in {namespace}: " + ("known" if found else f"{status}, {reason}"))
    return found


def main(gateway, experiments, *namespaces):
    """Check everything, so that one run names all that is wrong."""
    checks = [
        is_ready("gateway", f"{gateway}/-/ready"),
        is_ready("experiments", f"{experiments}/readyz"),
        *(knows_served_models(namespace) for namespace in namespaces),
    ]
    return 0 if all(checks) else 1


sys.exit(main(*sys.argv[1:]))
