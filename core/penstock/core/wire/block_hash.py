"""vLLM's `sha256_cbor` block hashes, computed outside the engine: equal prompts give the engine's own hashes.

A block's hash is SHA-256 over the canonical CBOR (RFC 8949, section 4.2) of `(parent hash, token ids, extra keys)`. The
chain starts from the hash of a fixed text, or of PYTHONHASHSEED's where the engine has one. Only whole blocks have one.

CBOR of a token id is one to five bytes and the same ids come again and again, so each is encoded once and kept: that
makes the chain about as fast as SHA-256 itself.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

DEFAULT_SEED = "vllm-none-hash"
_KEPT_IDS = 1 << 18
"""Ids below this are kept once encoded (every vocabulary in use is smaller); a hostile larger one is not."""
_MASK = (1 << 64) - 1

ExtraKeys = tuple[tuple[str, ...], ...] | None
"""What beside tokens names a block: `("cache_salt", salt)` on the first block, `("lora", name, path)` on every one."""


class _TokenTable(dict[int, bytes]):
    """Token id -> its CBOR, filled as ids are met."""

    def __missing__(self, token: int) -> bytes:
        encoded = _cbor_head(0, token)
        if token < _KEPT_IDS:
            self[token] = encoded
        return encoded


def _cbor_head(major: int, value: int) -> bytes:
    """Initial byte and argument of a CBOR item, in its shortest form."""
    if value < 24:
        return bytes((major << 5 | value,))
    for size, code in ((1, 24), (2, 25), (4, 26), (8, 27)):
        if value < 1 << 8 * size:
            return bytes((major << 5 | code,)) + value.to_bytes(size, "big")
    raise ValueError(f"{value} does not fit CBOR's 64-bit argument")


def _cbor_text(text: str) -> bytes:
    encoded = text.encode()
    return _cbor_head(3, len(encoded)) + encoded


def _cbor_extra(extra: ExtraKeys) -> bytes:
    if extra is None:
        return b"\xf6"
    keys = [_cbor_head(4, len(key)) + b"".join(map(_cbor_text, key)) for key in extra]
    return _cbor_head(4, len(extra)) + b"".join(keys)


_tokens = _TokenTable()
_PARENT = b"\x83\x58\x20"  # an array of three that begins with a byte string of 32


@lru_cache(maxsize=64)
def root_hash(seed: str = DEFAULT_SEED) -> bytes:
    """The parent of every first block: 32 bytes. `seed` is the engine's PYTHONHASHSEED where it has one."""
    return sha256(_cbor_text(seed)).digest()


def chain_hashes(
    token_ids: Sequence[int],
    block_size: int,
    *,
    parent: bytes | None = None,
    salt: str | None = None,
    adapter: tuple[str, str] | None = None,
) -> list[bytes]:
    """The 32-byte hashes of the whole blocks of `token_ids`, in order.

    `parent` is the chain's root, or continues a chain (then `salt` belongs to an earlier block and must be None);
    `adapter` is the LoRA adapter's (name, path). Ids must be non-negative; tokens past the last whole block are
    ignored.
    """
    digest = root_hash() if parent is None else parent
    keys = () if adapter is None else (("lora", *adapter),)
    rest = _cbor_extra(keys or None)
    first = rest if salt is None else _cbor_extra((*keys, ("cache_salt", salt)))
    head = _cbor_head(4, block_size)
    encode = _tokens.__getitem__
    hashes: list[bytes] = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        body = b"".join(map(encode, token_ids[start : start + block_size]))
        extra = rest if start else first
        digest = sha256(b"".join((_PARENT, digest, head, body, extra))).digest()
        hashes.append(digest)
    return hashes


def to_integer(digest: bytes) -> int:
    """The unsigned 64-bit form in which engines publish a hash: its last eight bytes."""
    return int.from_bytes(digest, "big") & _MASK
