"""The decisions floor of the operator room."""
