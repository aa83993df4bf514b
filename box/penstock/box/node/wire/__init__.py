"""The kubelet's protocols as the box speaks them: our own subset of their messages, and the code generated from it.

The `*_pb2.py` files are written by `hack/generate_protos.py`; nobody edits them.
"""
