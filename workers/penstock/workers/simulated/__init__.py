"""`python -m penstock.workers.simulated`: a vLLM-compatible engine that needs no accelerator."""
