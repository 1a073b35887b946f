#!/usr/bin/env python3
"""Seals a share's credentials for one job on one host, as a management server would, with any HPKE library (here pyhpke).

    printf 'username=backup\npassword=secret\n' | seal_credentials.py HOST_KEY HOST JOB_ID

HOST_KEY is what `longshore host key` prints on the host, and what its `worker.online` event carries as `host_key`. Prints the job's
field `repository.credentials`. Only that host can open it, and only for that job: for another job, seal again.
"""

import base64
import json
import sys
import uuid

from pyhpke import AEADId, CipherSuite, KDFId, KEMId

SUITE = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.CHACHA20_POLY1305)
INFO = b"longshore credentials v1"


def seal(text: bytes, host_key: str, host: str, job_id: str) -> dict:
    """The field `repository.credentials` of the job `job_id` for `host`, with the text of a credentials file sealed in it."""
    key = SUITE.kem.deserialize_public_key(base64.b64decode(host_key, validate=True))
    # Lower case with hyphens, however the job id was written.
    bound_to = f"{host}\n{uuid.UUID(job_id)}".encode()
    enc, sender = SUITE.create_sender_context(key, INFO)
    parts = {"enc": enc, "ciphertext": sender.seal(text, bound_to)}
    return {"sealed": {name: base64.b64encode(part).decode() for name, part in parts.items()}}


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    json.dump(seal(sys.stdin.buffer.read(), *sys.argv[1:]), sys.stdout)
