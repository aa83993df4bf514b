"""The autoscaler: sees how much work each pool has and how well its users are served.

`decisions` turns what workers said into signals, purely; `shell` asks workers and the Kubernetes API and exports the
signals as metrics. This room never writes to the cluster: nothing here may scale, patch or delete.
"""
