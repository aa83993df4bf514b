"""Pure: from what was observed to what must be. No clock, no I/O, no randomness; `now` is an argument."""
