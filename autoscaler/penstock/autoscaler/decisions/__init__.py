"""The decisions floor of the autoscaler room."""
