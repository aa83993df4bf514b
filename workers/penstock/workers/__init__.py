"""Engines as pods: the adapters that render them, the drain that lets them go, the engine we simulate.

Nothing here picks a worker or counts replicas.
"""
