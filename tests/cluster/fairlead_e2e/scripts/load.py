"""Sends predictions at a steady rate and writes down everything that came back.

Runs in a pod. Some connections are kept open, one worker opens a new one for each request. A kept
connection that the server has closed is not used again, as any HTTP client's pool does. A request
whose connection could not even be opened was never sent: it is tried again, and noted as refused.
"""

import argparse
import collections
import http.client
import json
import pathlib
import random
import select
import signal
import socket
import sys
import threading
import time
from urllib.parse import urlsplit

KEPT_NOTES = 200
OK = 200
TIMEOUT = 15.0
CONNECT = 3.0
OPENED_WITHIN = 60.0
NODES_TRIED = 16  # connections in a row: each goes to any of the gateways
BODY = json.dumps({"dataframe_split": {"columns": ["x"], "data": [[1.0]]}})


class Notes:
    """What came back. Safe to use from several threads."""

    def __init__(self):
        self.lock = threading.Lock()
        self.began = time.time()
        self.sent = 0
        self.failed = 0
        self.failures = []
        self.refused = []
        self.answers = collections.Counter()
        self.first = {}
        self.last = {}
        self.units = {}
        self.moved = []
        self.slowest = 0.0
        self.seconds = collections.deque(maxlen=20_000)
        self.outcomes = collections.deque()
        self.outcomes_kept = 0

    def fail(self, began, connection, why):
        """Note a request without a good answer."""
        with self.lock:
            self.failed += 1
            if len(self.failures) < KEPT_NOTES:
                note = {"began": began, "at": time.time(), "why": why}
                self.failures.append({**note, "on": connection.describe()})

    def refuse(self, why):
        """Note a connection that could not be opened."""
        with self.lock:
            if len(self.refused) < KEPT_NOTES:
                self.refused.append({"at": time.time(), "why": why})

    def answer(self, unit, headers, value, seconds):
        """Note a good answer."""
        rollout = headers.get("x-rollout-id", "")
        arm, version = headers["x-rollout-arm"], headers["x-model-version"]
        now = time.time()
        with self.lock:
            self.answers[f"{rollout}|{arm}|{version}|{value:g}"] += 1
            self.first.setdefault(version, now)
            self.last[version] = now
            before = self.units.get((rollout, unit))
            if rollout and before == "candidate" and arm == "stable":
                self.moved.append(unit)
            self.units[(rollout, unit)] = arm
            self.seconds.append(seconds)
            self.slowest = max(self.slowest, seconds)

    def report(self):
        """Sum up what came back so far."""
        with self.lock:
            ranked = sorted(self.seconds)
            pick = lambda share: ranked[int(share * (len(ranked) - 1))] if ranked else 0.0  # noqa: E731
            return {
                "began": self.began,
                "at": time.time(),
                "sent": self.sent,
                "failed": self.failed,
                "failures": list(self.failures),
                "refused": list(self.refused),
                "answers": dict(self.answers),
                "first": dict(self.first),
                "last": dict(self.last),
                "moved": list(self.moved),
                "outcomes": self.outcomes_kept,
                "seconds": {"p50": pick(0.5), "p99": pick(0.99), "max": self.slowest},
            }


class Connection:
    """One connection to the gateway, opened when it is needed."""

    def __init__(self, host, port, notes):
        self.host, self.port, self.notes = host, port, notes
        self.http = None
        self.used = 0

    def describe(self):
        """Say how much it was used, for a note of a failure."""
        return f"request {self.used} of its connection"

    def open(self):
        """Connect, unless an open connection is there, with as many tries as it takes in a while.

        Until the cluster knows that a node is lost, every second new connection goes to it.
        """
        if self.http is not None and not self._is_closed():
            return
        self.close()
        deadline = time.monotonic() + OPENED_WITHIN
        while True:
            self.http = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
            try:
                self.http.sock = socket.create_connection((self.host, self.port), timeout=CONNECT)
            except OSError as error:
                self.notes.refuse(repr(error))
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
                continue
            self.http.sock.settimeout(TIMEOUT)
            self.http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.used = 0
            return

    def close(self):
        """Close it; the next request opens another."""
        if self.http is not None:
            self.http.close()
        self.http = None

    def _is_closed(self):
        # Something to read where nothing was asked is the server's goodbye.
        return self.http.sock is None or bool(select.select([self.http.sock], [], [], 0)[0])

    def ask(self, path, unit):
        """Send one request; returns status, headers and body."""
        self.open()
        self.used += 1
        headers = {"content-type": "application/json", "x-unit-id": unit}
        self.http.request("POST", path, body=BODY, headers=headers)
        answer = self.http.getresponse()
        body = answer.read()
        if answer.getheader("connection", "") == "close":
            self.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body


def address_of(name):
    """Look a name up once, however long it takes: the cluster's DNS is not what is tested."""
    while True:
        try:
            return socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0]
        except socket.gaierror:
            time.sleep(0.2)


def await_way(address, port):
    """Wait until connections come through, one after the other.

    The nodes learn of a new pod each in its own time, and until then drop what its policies
    would let pass. That delay is the cluster's, and is not what is tested.
    """
    opened = 0
    while opened < NODES_TRIED:
        try:
            socket.create_connection((address, port), timeout=1.0).close()
            opened += 1
        except OSError:
            opened = 0
            time.sleep(0.1)


def work(options, notes, stop, worker):
    """Send every n-th request of the whole."""
    url = urlsplit(options.url)
    connection = Connection(options.address, url.port or 80, notes)
    number, interval = worker, options.connections / options.rate
    due = time.monotonic() + interval * worker / options.connections
    while not stop.wait(max(0.0, due - time.monotonic())):
        due = max(due + interval, time.monotonic() - 1.0)  # what was missed is not made up for
        if worker == 0:
            connection.close()
        one_request(options, notes, connection, url.path, f"unit-{number % options.units}")
        number += options.connections


def one_request(options, notes, connection, path, unit):
    """Send a request and note what came of it."""
    with notes.lock:
        notes.sent += 1
    began, clock = time.time(), time.monotonic()
    try:
        status, headers, body = connection.ask(path, unit)
    except (OSError, http.client.HTTPException) as error:
        notes.fail(began, connection, repr(error))
        connection.close()
        return
    if status != OK:
        who = f"{headers.get('x-model-version')}/{headers.get('x-rollout-arm')}"
        notes.fail(began, connection, f"{status} by {who}: {body[:200].decode(errors='replace')}")
        return
    value = float(json.loads(body)["predictions"][0])
    notes.answer(unit, headers, value, time.monotonic() - clock)
    if options.outcomes:
        noise = random.uniform(-0.2, 0.2)
        notes.outcomes.append((headers["x-inference-id"], value + noise))


def report_outcomes(options, notes, stop):
    """Post what was observed for each answer, as a client does later."""
    url = urlsplit(options.outcomes)
    waiting = []
    while not stop.wait(0.5):
        while notes.outcomes:
            inference, value = notes.outcomes.popleft()
            waiting.append({"inferenceId": inference, "outcome": "score", "value": value})
        if waiting and post_outcomes(url, waiting[:1000]):
            notes.outcomes_kept += len(waiting[:1000])
            del waiting[:1000]


def post_outcomes(url, outcomes):
    """Say whether a batch was taken; it is kept otherwise."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    body = json.dumps({"outcomes": [{**item, "observedAt": at} for item in outcomes]})
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=5)
    try:
        connection.request(
            "POST", url.path, body=body, headers={"content-type": "application/json"}
        )
        return connection.getresponse().status == OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def write_report(path, notes):
    """Write the report so that a reader sees a whole one."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(notes.report()), "utf-8")
    draft.replace(path)


def main():
    """Send until SIGTERM, then print the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--outcomes", default="")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--units", type=int, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    options = parser.parse_args()
    options.address = address_of(urlsplit(options.url).hostname)
    await_way(options.address, urlsplit(options.url).port or 80)
    notes, stop, ended = Notes(), threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    workers = [
        threading.Thread(target=work, args=(options, notes, stop, n))
        for n in range(options.connections)
    ]
    if options.outcomes:
        workers.append(threading.Thread(target=report_outcomes, args=(options, notes, stop)))
    for worker in workers:
        worker.start()
    while not ended.wait(0.5) and not (options.folder / "stop").exists():
        write_report(options.folder / "report.json", notes)
    stop.set()
    for worker in workers:
        worker.join()
    write_report(options.folder / "final.json", notes)
    sys.stdout.write(json.dumps(notes.report()) + "\n")
    sys.stdout.flush()
    ended.wait(600)  # the report can be read until the pod is deleted


if __name__ == "__main__":
    main()
