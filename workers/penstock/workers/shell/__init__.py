"""The shell floor of the workers room."""
