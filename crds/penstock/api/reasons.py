"""Condition types and reasons: every word that `status` and Events may use, with its meaning.

They stand in one file so that a reason is never spelled twice in two ways; the reference page is made from it.
"""

from enum import StrEnum


class _Word(StrEnum):
    """A string constant that knows its meaning."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> "_Word":
        """`value` is the word on the wire; `meaning` one line for people."""
        word = str.__new__(cls, value)
        word._value_ = value
        word.meaning = meaning
        return word


class ConditionType(_Word):
    """Aspects of a ModelDeployment or WorkerPool."""

    ACCEPTED = "Accepted", "The spec makes sense to us: names resolve, the model fits"
    PROFILE_READY = "ProfileReady", "Latency figures are known for every accelerator class in use"
    CAPACITY_AVAILABLE = "CapacityAvailable", "Every wanted worker has found its accelerators"
    ROUTER_READY = "RouterReady", "The router sees this deployment's workers; written by the router"
    AVAILABLE = "Available", "Enough workers are ready to serve"
    PROGRESSING = "Progressing", "Workers are being added, replaced or removed"
    DEGRADED = "Degraded", "Something runs worse than asked for and does not mend itself"
    READY = "Ready", "Sum of all other conditions, as kstatus reads it"


class Reason(_Word):
    """Reasons of conditions and Events."""

    # Accepted
    ACCEPTED = "Accepted", "The spec resolves completely"
    NAME_TAKEN = "NameTaken", "An older ModelDeployment serves this model name"
    POOL_NAME_TAKEN = "PoolNameTaken", "another ModelDeployment or pool has a WorkerPool of the name a pool would get"
    UNKNOWN_ENGINE_CLASS = "UnknownEngineClass", "engine.className names no EngineClass"
    NO_DEFAULT_ENGINE_CLASS = (
        "NoDefaultEngineClass",
        "no engine.className is given and no EngineClass is default",
    )
    AMBIGUOUS_ENGINE_CLASS = (
        "AmbiguousEngineClass",
        "no engine.className is given and several classes are default",
    )
    UNKNOWN_ACCELERATOR_CLASS = "UnknownAcceleratorClass", "a pool names no existing AcceleratorClass"
    NO_ACCELERATOR_CLASS = "NoAcceleratorClass", "no AcceleratorClass exists that pools left out could use"
    UNKNOWN_ROUTING_POLICY = "UnknownRoutingPolicy", "routing.policy names no policy of the router"
    UNKNOWN_MODEL = "UnknownModel", "neither model.name nor model.architecture is in the catalogue"
    MODEL_DOES_NOT_FIT = "ModelDoesNotFit", "the model does not fit the accelerators of a worker"
    NO_COMPATIBLE_PAIR = "NoCompatiblePair", "a Prefill or Decode pool can exchange KV with no pool of the other role"
    PARALLELISM_UNAVAILABLE = "ParallelismUnavailable", "a worker would need more accelerators than a node has"
    DEVICE_CLASS_UNAVAILABLE = "DeviceClassUnavailable", "dynamic resource allocation is not used by this release"
    INVALID_ENGINE_ARGS = "InvalidEngineArgs", "the engine arguments cannot be rendered"
    INVALID_POD_TEMPLATE = "InvalidPodTemplate", "the API server refuses the rendered pod"
    INVALID_SPEC = "InvalidSpec", "the stored object cannot be read by this release"
    # ProfileReady
    PROFILE_FOUND = "ProfileFound", "a PerformanceProfile object gives the figures"
    PROFILE_FROM_CATALOGUE = "ProfileFromCatalogue", "published coefficients give the figures"
    PROFILE_FROM_ROOFLINE = "ProfileFromRoofline", "figures are computed from the hardware's limits"
    PROFILE_MISSING = "ProfileMissing", "no source gives figures"
    # CapacityAvailable
    CAPACITY_AVAILABLE = "CapacityAvailable", "every wanted worker has found its accelerators"
    INSUFFICIENT_CAPACITY = "InsufficientCapacity", "pods wait because no node has room for them"
    CAPACITY_PENDING = "CapacityPending", "pods were asked for and are not scheduled yet"
    QUOTA_EXCEEDED = "QuotaExceeded", "a ResourceQuota or an admission rule refuses the pods"
    # RouterReady
    WORKERS_ROUTABLE = "WorkersRoutable", "the router sends requests to this deployment"
    NO_ROUTABLE_WORKER = "NoRoutableWorker", "the router sees no ready worker of this deployment"
    ROUTER_UNKNOWN = "RouterUnknown", "the router has not spoken yet"
    # Available
    WORKERS_READY = "WorkersReady", "all wanted workers are ready"
    MINIMUM_READY = "MinimumReady", "enough workers are ready to serve, though not all"
    WORKERS_STARTING = "WorkersStarting", "workers are loading the model"
    NO_WORKER_READY = "NoWorkerReady", "no worker is ready"
    SCALED_TO_ZERO = "ScaledToZero", "no worker is wanted at present"
    # Progressing
    ROLLING_OUT = "RollingOut", "workers of an older revision are being replaced"
    SCALING = "Scaling", "the number of workers is moving to what is wanted"
    STABLE = "Stable", "nothing is moving"
    # Degraded
    AS_EXPECTED = "AsExpected", "nothing runs worse than asked for"
    WORKERS_CRASHING = "WorkersCrashing", "a worker's container ends again and again"
    IMAGE_UNAVAILABLE = "ImageUnavailable", "an image cannot be pulled"
    WORKERS_UNREADY = "WorkersUnready", "workers that served are not ready"
    TERMINATING_OVERLAP = "TerminatingOverlap", "a pod on its way out still holds accelerators beside its successor"
    SIGNALS_MISSING = "SignalsMissing", "the autoscaler does not know the load well enough to take workers away"
    OTHER_WRITER = "OtherWriter", "another manager writes replicas, so the autoscaler stepped back"
    GAVE_UP = "GaveUp", "capacity that was asked for did not come in time"
    # Ready
    READY = "Ready", "accepted, available and routed"
    NOT_READY = "NotReady", "some condition is not met; the message says which"
    RECONCILING = "Reconciling", "on the way to ready"
    # Events only
    WORKER_POOL_APPLIED = "WorkerPoolApplied", "a WorkerPool was made or changed"
    WORKER_POOL_REMOVED = "WorkerPoolRemoved", "a WorkerPool that is no longer wanted was deleted"
    SCALED = "Scaled", "the number of workers was changed"
    SCALED_TO_BOUNDS = "ScaledToBounds", "replicas was moved because a bound moved"
    REVISION_CREATED = "RevisionCreated", "a new revision of the workers was made"
    REVISION_REMOVED = "RevisionRemoved", "an old revision was deleted"
    ROLLED_OUT = "RolledOut", "all workers are of the current revision"
    RECONCILE_FAILED = "ReconcileFailed", "a write was refused; it is tried again"
