"""Signed tokens, as an identity provider makes them."""

import base64
import json
import time
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER = "https://id.example.com/"
AUDIENCE = "flights"


def encode(content: bytes) -> str:
    """Write bytes as tokens do."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Issuer:
    """Makes tokens with a key of its own."""

    def __init__(self, kid: str = "first") -> None:
        """Make the key."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.kid = kid

    @property
    def jwks(self) -> str:
        """The public key, as a set."""
        numbers = self._key.public_key().public_numbers()
        place = {name: encode(getattr(numbers, name).to_bytes(32, "big")) for name in ("x", "y")}
        key = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid, **place}
        return json.dumps({"keys": [key]})

    def token(self, **claims: Any) -> str:
        """Make a token that is good for an hour, unless the claims say otherwise."""
        standard = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 3600}
        head = {"alg": "ES256", "kid": self.kid, "typ": "JWT"}
        held = {name: value for name, value in (standard | claims).items() if value is not None}
        parts = ".".join(encode(json.dumps(part).encode()) for part in (head, held))
        signature = self._key.sign(parts.encode(), ec.ECDSA(hashes.SHA256()))
        pair = b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(signature))
        return f"{parts}.{encode(pair)}"

    def bearer(self, **claims: Any) -> dict[str, str]:
        """Make the header that carries a token."""
        return {"authorization": f"Bearer {self.token(**claims)}"}

    def jwt(self, **changes: Any) -> dict[str, Any]:
        """Make the part of a plan that asks for these tokens."""
        asked = {"issuer": ISSUER, "audiences": [AUDIENCE], "jwks": self.jwks, "required": True}
        return asked | changes
