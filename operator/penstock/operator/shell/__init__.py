"""Thin: watch (kopf), queue, elect a leader, carry out writes. Nothing here decides what a deployment needs."""
