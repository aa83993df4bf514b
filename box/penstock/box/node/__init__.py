"""One node of the box: a real kubelet above our own container runtime.

A kubelet needs a container runtime, and a laptop without root has none. This package is that runtime:
it speaks the kubelet's protocols (CRI `runtime.v1`, device plugin `v1beta1`) and starts every container as
a plain process in namespaces of its own. Everything else a node does (probes, restarts, volumes, tokens,
grace periods, status) stays the kubelet's, so that the box behaves as a cluster does.

Nothing of the host may change: /dev, /etc and /var are private before anything is written there.
"""
