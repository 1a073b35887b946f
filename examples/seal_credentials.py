#!/usr/bin/env python3
"""Seals a share's credentials for one job, as a management server would, with any HPKE library (here pyhpke).

    seal_credentials.py HOST_KEY JOB.json < credentials

HOST_KEY is what `longshore host key` prints on the host. JOB.json is the job without credentials, credentials are lines such as
`username=backup` and `password=secret`. Prints the job with its field `repository.credentials`. Only that host can open it, and only
for that job on that share: for another job, seal again. Whoever is not sure that a job was sent sends the same bytes again, since
sealing again would make another body, and a run has one.
"""

import base64
import json
import sys
import uuid

from pyhpke import AEADId, CipherSuite, KDFId, KEMId

SUITE = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.CHACHA20_POLY1305)
INFO = b"longshore credentials v1"


def seal(text: bytes, host_key: str, job: dict) -> dict:
    """The job with the text of a credentials file sealed in it."""
    key = SUITE.kem.deserialize_public_key(base64.b64decode(host_key, validate=True))
    share = job["repository"]
    # Both ids in lower case with hyphens, however they were written.
    ids = [str(uuid.UUID(job["job_id"])), str(uuid.UUID(share["id"]))]
    bound_to = "\n".join([job["host"], *ids, share["type"], share["address"], share.get("options", "")])
    enc, sender = SUITE.create_sender_context(key, INFO)
    parts = {"enc": enc, "ciphertext": sender.seal(text, bound_to.encode())}
    sealed = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    return {**job, "repository": {**share, "credentials": {"sealed": sealed}}}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[2], encoding="utf-8") as file:
        json.dump(seal(sys.stdin.buffer.read(), sys.argv[1], json.load(file)), sys.stdout)
