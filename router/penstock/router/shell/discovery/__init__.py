"""Where workers and models come from: a fixed list, or the Kubernetes API."""
