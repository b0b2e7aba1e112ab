"""A LUKS1 header as QEMU's own driver reads it, for disks whose key is never kept (the LUKS1 on-disk format, 1.2.3).

QEMU could write it itself, but measures for two seconds how many rounds of PBKDF2 a passphrase deserves. A key of full
entropy deserves none, so we write the header, and a qube's start costs milliseconds. Key slots are laid out all eight, since QEMU
checks them all, and one is used.
"""
from __future__ import annotations

import hashlib
import os
import struct
import uuid

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

SECRET_BYTES = 64                   # of the secret that opens it, as text: 256 bits in hexadecimal digits
KEY_BYTES = 64                      # AES-256 in XTS has two keys
_SECTOR = 512
_ALIGNMENT = 8                      # sectors
_SLOTS = 8
_STRIPES = 4000                     # the only number QEMU takes
_ITERATIONS = 1000                  # the fewest that the format allows: there is nothing to guess
_DIGEST_BYTES, _SALT_BYTES = 20, 32
_HASH = "sha256"
_USED, _UNUSED = 0x00AC71F3, 0x0000DEAD
_SLOT_SECTORS = -(-KEY_BYTES * _STRIPES // _SECTOR // _ALIGNMENT) * _ALIGNMENT
LENGTH = (_ALIGNMENT + _SLOTS * _SLOT_SECTORS) * _SECTOR        # bytes of the header with all its slots
# magic, version, cipher, mode, hash, start of the data, bytes of a key | digest, salt and rounds of the master key, uuid
_HEADER = struct.Struct(">6sH32s32s32sII 20s32sI40s")
_SLOT = struct.Struct(">II32sII")   # state, rounds, salt, first sector, stripes


def new_secret() -> bytes:
    """What opens one disk, once. To be held in memory only."""
    return os.urandom(SECRET_BYTES // 2).hex().encode("ascii")


def new_header(secret: bytes) -> bytes:
    """The beginning of a header with a new master key that `secret` opens; the rest of LENGTH is zeros."""
    key, salt, digest_salt = os.urandom(KEY_BYTES), os.urandom(_SALT_BYTES), os.urandom(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac(_HASH, key, digest_salt, _ITERATIONS, _DIGEST_BYTES)
    header = _HEADER.pack(
        b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", _HASH.encode(), LENGTH // _SECTOR, KEY_BYTES,
        digest, digest_salt, _ITERATIONS, str(uuid.uuid4()).encode(),
    )
    slots = [_SLOT.pack(_USED, _ITERATIONS, salt, _ALIGNMENT, _STRIPES)]
    slots += [_SLOT.pack(_UNUSED, 0, b"", _ALIGNMENT + number * _SLOT_SECTORS, _STRIPES) for number in range(1, _SLOTS)]
    slot_key = hashlib.pbkdf2_hmac(_HASH, secret, salt, _ITERATIONS, KEY_BYTES)
    return b"".join((header, *slots)).ljust(_ALIGNMENT * _SECTOR, b"\0") + _encrypt(slot_key, _split(key))


def _split(key: bytes) -> bytes:
    """The anti-forensic form of a key: losing any part of it loses the key."""
    parts = [os.urandom(len(key)) for _ in range(_STRIPES - 1)]
    mixed = bytes(len(key))
    for part in parts:
        mixed = _diffuse(_xor(mixed, part))
    return b"".join((*parts, _xor(mixed, key)))


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(one))


def _diffuse(data: bytes) -> bytes:
    """Each piece as long as a hash becomes the hash of its number and itself."""
    pieces = range(0, len(data), 32)
    return b"".join(hashlib.sha256(struct.pack(">I", at // 32) + data[at:at + 32]).digest() for at in pieces)


def _encrypt(key: bytes, data: bytes) -> bytes:
    """Sector by sector, as `xts-plain64` says."""
    cipher = AES(key)
    sectors = []
    for number in range(len(data) // _SECTOR):
        encryptor = Cipher(cipher, XTS(number.to_bytes(16, "little"))).encryptor()
        sectors.append(encryptor.update(data[number * _SECTOR:(number + 1) * _SECTOR]))
    return b"".join(sectors)
