"""From text to tokens to block hashes, exactly as the engine makes them; or a plain answer that it cannot be told.

The modules are the doors, on purpose: nothing is imported here, so that the simulated engine, which needs `builtin`
alone, does not load a template engine and a tokenizer library with it.

- `builtin`: the simulated engine's tokenizer
"""
