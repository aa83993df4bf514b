"""Workloads that no trace recorded."""
