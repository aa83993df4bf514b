"""The one error of the wire: a peer sent bytes that are not what the protocol says."""


class WireError(ValueError):
    """Bytes from a peer cannot be understood; the message says what was expected and what came."""
