"""Says which `host:port` a pod can connect to. Runs in a pod."""

import json
import socket
import sys


def is_open(target):
    """Say whether a connection can be made; a policy drops packets, so it takes a while."""
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.stdout.write(json.dumps({target: is_open(target) for target in sys.argv[1:]}))
