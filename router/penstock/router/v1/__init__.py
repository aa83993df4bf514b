"""Messages and stubs of `penstock.router.v1.Router`, generated from `router/proto`."""
