"""Services inside the box: a user-space proxy behind every ClusterIP, the cluster's DNS, and the host's doors.

One process, one watch of Services and EndpointSlices. Pure parts (`table`, `zone`) say what is true; `relay` and
`listeners` move bytes; nothing here writes to the API.
"""
