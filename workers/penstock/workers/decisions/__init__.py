"""What a worker's pod looks like: pure renderings of a `WorkerSpec`, one adapter per engine.

Nothing here reads the cluster, the clock or a socket; the operator calls it and applies what it returns.
"""
