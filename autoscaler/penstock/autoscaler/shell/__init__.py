"""The I/O around the decisions: watches of the Kubernetes API, scrapes of workers, metrics and health ports."""
