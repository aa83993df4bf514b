"""The decisions floor of the workers room."""
