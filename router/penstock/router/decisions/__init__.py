"""The decisions floor of the router room."""
