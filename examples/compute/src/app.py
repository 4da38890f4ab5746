"""Takes data through JSON, gzip and AES and back, and says what it looked like on the way."""

import gzip
import hashlib
import json
import os

import aes

LEVEL = int(os.environ["LEVEL"])


def handler(event, context):
    records = [record(number) for number in range(event["records"])]
    text = json.dumps(records, separators=(",", ":")).encode()
    packed = gzip.compress(text, LEVEL, mtime=0)
    key, nonce = bytes.fromhex(event["key"]), bytes.fromhex(event["nonce"])
    secret = aes.ctr(key, nonce, packed)
    again = json.loads(gzip.decompress(aes.ctr(key, nonce, secret)))
    return {
        "json": hashlib.sha256(text).hexdigest(),
        "smaller": len(packed) < len(text),
        "secret": secret != packed and len(secret) == len(packed),
        "round_trip": again == records,
        "block": aes.ctr(key, nonce, bytes(16)).hex(),
    }


def record(number):
    return {"id": number, "name": f"record {number}", "values": [number * k % 97 for k in range(8)]}
