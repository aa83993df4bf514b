"""The autoscaler room."""
