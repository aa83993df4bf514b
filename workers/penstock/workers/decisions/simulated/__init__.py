"""The simulated model and its front door, as pure functions: words, output, requests, faults."""
