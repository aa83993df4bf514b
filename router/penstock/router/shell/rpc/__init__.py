"""The gRPC front door: `penstock.router.v1.Router`. Imported only where its port is on."""
