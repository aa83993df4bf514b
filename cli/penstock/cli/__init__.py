"""The command `penstock`: verbs for a person at a terminal. Nothing imports this room."""
