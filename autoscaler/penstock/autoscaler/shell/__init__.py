"""The shell floor of the autoscaler room."""
