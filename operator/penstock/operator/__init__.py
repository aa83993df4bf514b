"""The operator: a ModelDeployment becomes WorkerPools, ReplicaSets, pods, and a status that explains itself.

`decisions` says what must be; `shell` watches and writes. No other room may be called from here: what the operator
knows of routers, workers and autoscalers it reads from Kubernetes objects.
"""
