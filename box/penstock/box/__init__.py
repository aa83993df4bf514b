"""The box room."""
