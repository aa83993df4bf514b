"""From text to tokens to block hashes, exactly as the engine makes them; or a plain answer that it cannot be told.

The modules are the doors, on purpose: nothing is imported here, so that the simulated engine, which needs `builtin`
alone, does not load a template engine and a tokenizer library with it.

- `builtin`: the simulated engine's tokenizer
- `files`: a model's tokenizer files, read and checked
- `templates`: chat templates in a bounded sandbox
- `segments`: tokens of texts seen before, kept
- `messages`: OpenAI's messages and tools as an engine hands them to its template
- `requests`: what of a request's body decides its tokens
- `prompts`: the one function from a request to token ids and block hashes
- `ledger`: predicted against measured cache hits
"""
