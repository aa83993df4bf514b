"""Engine arguments as the user overrides them: ours are defaults, theirs win, a few are not theirs to give.

vLLM's parser takes `--flag value`, `--flag=value`, underscores for dashes, `--no-flag` for booleans, dotted
`--flag.key value` for JSON flags and a handful of short names; all spellings of a flag count as that flag here.
"""

from collections.abc import Iterable, Mapping, Sequence

from penstock.workers.decisions.adapters.spec import AdapterError

SHORT_NAMES: Mapping[str, str] = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-dcp": "--decode-context-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-q": "--quantization",
}

_PARALLELISM = "set the pool's parallelism instead, so that its accelerators are counted"
_ROUTER_PORT = "the router and the probes rely on the worker's one HTTP port"

OWNED: Mapping[str, str] = {
    "--model": "set spec.model.source.uri instead",
    "--revision": "write it into the source instead: hf://org/name@revision",
    "--served-model-name": "set spec.model.name instead",
    "--host": _ROUTER_PORT,
    "--port": _ROUTER_PORT,
    "--uds": _ROUTER_PORT,
    "--root-path": _ROUTER_PORT,
    "--ssl-keyfile": "workers speak plain HTTP inside the cluster; end TLS in front of the gateway",
    "--ssl-certfile": "workers speak plain HTTP inside the cluster; end TLS in front of the gateway",
    "--api-key": "keys are checked in front of the gateway; a worker that asks for one fails its probes' metrics",
    "--shutdown-timeout": "set shutdownTimeout in the engine class instead, so that the drain leaves room for it",
    "--tensor-parallel-size": _PARALLELISM,
    "--pipeline-parallel-size": _PARALLELISM,
    "--data-parallel-size": _PARALLELISM,
    "--kv-events-config": "the router subscribes to the events where the operator puts them",
}
"""Flags the operator decides, each with what to do instead."""


def flag_name(argument: str) -> str | None:
    """The canonical long flag of an argument word, or None where the word is a value (`-1` is one)."""
    if not argument.startswith("-") or argument[1:2].isdigit() or argument in ("-", "--"):
        return None
    name = argument.split("=", 1)[0]
    if not name.startswith("--"):
        return SHORT_NAMES.get(name, name)
    name = "--" + name[2:].split(".", 1)[0].replace("_", "-")
    return "--" + name[5:] if name.startswith("--no-") else name


def flags_of(arguments: Iterable[str]) -> dict[str, str | None]:
    """Each flag in `arguments` with its last value; None where it takes none."""
    found: dict[str, str | None] = {}
    current: str | None = None
    for word in arguments:
        name = flag_name(word)
        if name is None:
            if current is not None:
                found[current] = word
            continue
        current = name
        found[name] = word.split("=", 1)[1] if "=" in word else None
    return found


def refuse_owned(arguments: Sequence[str], owned: Mapping[str, str]) -> None:
    """Raise `AdapterError` for a leading value and for the first flag that is not the user's to give."""
    if arguments and flag_name(arguments[0]) is None:
        raise AdapterError(
            f"engine argument {arguments[0]!r} is not a flag; the model comes from spec.model.source, and every "
            "other argument starts with --"
        )
    for word in arguments:
        name = flag_name(word)
        if name is not None and name in owned:
            raise AdapterError(f"engine argument {word!r} is not yours to give: {owned[name]}")


def merge(defaults: Sequence[Sequence[str]], arguments: Sequence[str]) -> list[str]:
    """Our defaults less those the user gives, then the user's words as they stand.

    `defaults` holds one group per flag: the flag, then its value where it takes one.
    """
    given = flags_of(arguments).keys()
    kept = [word for group in defaults if flag_name(group[0]) not in given for word in group]
    return kept + list(arguments)
