"""What the P/D sidecar decides: who may be asked for a prefill, what may pass, which life a request has."""
