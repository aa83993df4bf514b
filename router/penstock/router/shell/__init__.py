"""The shell floor of the router room."""
