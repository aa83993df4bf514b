"""The shell floor of the operator room."""
