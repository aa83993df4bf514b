"""`python -m penstock.workers.sidecar`: legs for those who send requests to a decode pod themselves."""
