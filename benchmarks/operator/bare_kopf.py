"""The baseline: kopf as its tutorial has it, one handler that writes one status field, and no children at all."""

import kopf


@kopf.on.startup()
def quiet(settings, **_):
    settings.posting.enabled = False
    settings.queueing.idle_timeout = 0.5


@kopf.on.login()
def login(**arguments):
    return kopf.login_with_kubeconfig(**arguments)


@kopf.on.create("penstock.dev", "v1alpha1", "modeldeployments")
def created(patch, **_):
    patch.status["workers"] = "0/0"


if __name__ == "__main__":
    kopf.run(clusterwide=True, standalone=True)
