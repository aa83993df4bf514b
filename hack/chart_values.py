"""The chart's values as models: `values.yaml`, its schema and its reference page are generated from here.

A docstring under a field becomes the comment in `values.yaml`, the description in `values.schema.json` and the
row of the reference page, so that the three cannot disagree. Unknown keys are refused by Helm itself.
"""

from typing import Annotated, Any, Literal

from penstock.api.quantities import DECIMAL_PATTERN, DURATION_PATTERN
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

Duration = Annotated[str, StringConstraints(pattern=DURATION_PATTERN)]
Decimal = Annotated[str, StringConstraints(pattern=DECIMAL_PATTERN)]
Port = Annotated[int, Field(ge=1, le=65535)]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
PolicyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9]{0,62}$")]
KubernetesObject = dict[str, Any]
LogLevel = Literal["debug", "info", "warning", "error"]


class Values(BaseModel):
    """Base of every group of values: camelCase, closed, described by docstrings."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, extra="forbid", use_attribute_docstrings=True
    )


class Image(Values):
    """Our images."""

    registry: str = ""
    """Registry (and folder) before every image name of ours, for a mirror or an air-gapped cluster."""
    tag: str = ""
    """Tag of every image of ours; empty: the chart's appVersion."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When images are pulled."""
    pull_secrets: list[KubernetesObject] = Field(default_factory=list)
    """Secrets of a private registry, as `[{name: my-secret}]`."""


class Role(Values):
    """What every role's Deployment has."""

    replicas: Annotated[int, Field(ge=0, le=100)] = 1
    """Pods of the role."""
    log_level: LogLevel = "info"
    """Lowest level that is logged."""
    resources: KubernetesObject
    """Requests and limits of the container."""
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86400)] = 30
    """Time from a pod's deletion to SIGKILL."""
    priority_class_name: str = ""
    """PriorityClass of the pods."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Nodes the pods may run on."""
    tolerations: list[KubernetesObject] = Field(default_factory=list)
    """Taints the pods tolerate."""
    affinity: KubernetesObject = Field(default_factory=dict)
    """Affinity of the pods."""
    topology_spread_constraints: list[KubernetesObject] = Field(default_factory=list)
    """How replicas spread over zones and nodes."""
    pod_labels: dict[str, str] = Field(default_factory=dict)
    """Labels added to the pods."""
    pod_annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations added to the pods."""
    service_account_annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the role's ServiceAccount."""
    extra_args: list[str] = Field(default_factory=list)
    """Further command-line flags."""
    extra_env: list[KubernetesObject] = Field(default_factory=list)
    """Further environment variables of the container."""


def _resources(cpu: str, memory: str, limit: str) -> KubernetesObject:
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit}}


class Operator(Role):
    """The operator: ModelDeployments become WorkerPools, and those pods."""

    repository: str = "penstock/operator"
    """Image, below `image.registry`."""
    resources: KubernetesObject = Field(default_factory=lambda: _resources("100m", "128Mi", "512Mi"))
    """Requests and limits of the container."""
    leader_election: bool = True
    """Whether replicas elect one that acts; leave on unless there is exactly one pod at any time."""


class Service(Values):
    """The Service clients reach the gateway by."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the Service."""
    port: Port = 80
    """Port clients use."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations, for load balancers."""


class Grpc(Values):
    """Picks over gRPC (`penstock.router.v1.Router`), for gateways and SDKs that send requests to workers themselves.
    Whoever reaches this port learns workers' addresses and can hold places on them: keep it inside the cluster
    (`networkPolicy.grpcFrom`), or ask for tokens and TLS."""

    enabled: bool = True
    """Whether the port is open, and in the Service; one that is not a ClusterIP has it only with a tokenSecret."""
    port: Port = 9000
    """Port of the Service."""
    tls_secret: str = ""
    """Secret of type kubernetes.io/tls in the release's namespace; empty: no TLS. A renewed one is taken up."""
    client_authentication: bool = False
    """Whether callers must show a certificate of the authority in the TLS Secret's ca.crt."""
    token_secret: str = ""
    """Secret whose key `tokens` holds bearer tokens, one a line, of which callers must send one; empty: none needed."""


class Router(Role):
    """The router: the OpenAI gateway in front of all workers."""

    repository: str = "penstock/router"
    """Image, below `image.registry`."""
    resources: KubernetesObject = Field(default_factory=lambda: _resources("250m", "192Mi", "1Gi"))
    """Requests and limits of the container."""
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86400)] = 630
    """Time running requests have to finish when a router pod goes."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1073741824)] = 16777216
    """Largest request body; larger is answered 413."""
    policy_files: dict[PolicyName, str] = Field(default_factory=dict, json_schema_extra={"additionalProperties": False})
    """Policies of your own: each one's name, and the text of the Python file that brings it; it runs in the router."""
    service: Service = Field(default_factory=Service)
    """The Service clients reach the gateway by."""
    grpc: Grpc = Field(default_factory=Grpc)
    """Picks over gRPC (`penstock.router.v1.Router`), for gateways and SDKs that send requests to workers themselves."""
    pod_disruption_budget: bool = True
    """Whether node drains take one router at a time (only with more than one replica)."""


class Autoscaler(Role):
    """The autoscaler: signals of the workers as metrics, plans in status, and in mode Auto the workers' number."""

    enabled: bool = True
    """Whether the autoscaler runs."""
    repository: str = "penstock/autoscaler"
    """Image, below `image.registry`."""
    resources: KubernetesObject = Field(default_factory=lambda: _resources("100m", "128Mi", "512Mi"))
    """Requests and limits of the container."""
    scrape_interval: Duration = "5s"
    """Time between two looks at a worker's metrics."""
    cycle_interval: Duration = "5s"
    """Time between two scaling cycles."""
    scale_in_window: Duration = "5m"
    """How long the load must have been lower before workers are taken away."""
    time_scale: Decimal = "1"
    """Factor on the windows of scaling, for simulated engines that run faster or slower than real ones."""
    planner: PolicyName = "TargetTracking"
    """Who sizes pools: TargetTracking, or a planner from `policyFiles`."""
    policy_files: dict[PolicyName, str] = Field(default_factory=dict, json_schema_extra={"additionalProperties": False})
    """Planners of your own: each one's name, and the text of the Python file that brings it."""


class Sidecar(Values):
    """The sidecar of decode workers: runs prefill and decode legs for those who pick over gRPC or through Envoy."""

    enabled: bool = True
    """Whether new decode workers get one; those that run keep what they have."""
    repository: str = "penstock/sidecar"
    """Image, below `image.registry`. Pull secrets are the engine class's."""


class VllmEngine(Values):
    """EngineClass `vllm`."""

    enabled: bool = True
    """Whether the class is made."""
    image: str = "vllm/vllm-openai:v0.32.0"
    """Image of vLLM."""
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    """When the image is pulled; empty: Kubernetes decides by the tag."""
    image_pull_secrets: list[KubernetesObject] = Field(default_factory=list)
    """Secrets, in the deployments' namespaces, for a private registry."""
    args: list[str] = Field(default_factory=list)
    """Arguments for every worker of the class."""
    env: list[KubernetesObject] = Field(default_factory=list)
    """Environment variables for every worker of the class."""
    shutdown_timeout: Duration = "20s"
    """Time the engine has to end its work after SIGTERM."""
    termination_grace_period: Duration = "5m"
    """Time from a worker's deletion to SIGKILL; its drain takes what shutdownTimeout and 5 s leave."""
    startup_timeout: Duration = "30m"
    """Time a worker has to load the model."""
    pod_template: KubernetesObject = Field(default_factory=dict)
    """Merged over every worker's pod: tolerations, runtime class, volumes, resources."""
    variants: list[KubernetesObject] = Field(default_factory=list)
    """What differs on some accelerator classes, as in EngineClass.spec.variants."""


class SimulatedEngine(Values):
    """EngineClass `simulated`: speaks vLLM's protocol, needs no GPU."""

    enabled: bool = True
    """Whether the class is made."""
    image: str = ""
    """Image; empty: ours."""
    args: list[str] = Field(default_factory=list)
    """Arguments for every worker of the class."""
    env: list[KubernetesObject] = Field(default_factory=list)
    """Environment variables for every worker of the class."""
    time_scale: Decimal = "1"
    """Wall-clock seconds per modelled second: "0.1" runs ten times faster than the modelled hardware."""
    startup: Duration = "2s"
    """Time a worker takes to start."""
    shutdown_timeout: Duration = "20s"
    """Time the engine has to end its work after SIGTERM."""
    termination_grace_period: Duration = "2m"
    """Time from a worker's deletion to SIGKILL."""
    startup_timeout: Duration = "5m"
    """Time a worker has to start before it is restarted."""
    pod_template: KubernetesObject = Field(default_factory=dict)
    """Merged over every worker's pod."""


class Engines(Values):
    """EngineClasses that come with the chart."""

    default: Literal["vllm", "simulated", ""] = "vllm"
    """Class for deployments that name none; empty where a class of yours is marked default."""
    vllm: VllmEngine = Field(default_factory=VllmEngine)
    """EngineClass `vllm`."""
    simulated: SimulatedEngine = Field(default_factory=SimulatedEngine)
    """EngineClass `simulated`: speaks vLLM's protocol, needs no GPU."""


class AcceleratorClasses(Values):
    """AcceleratorClasses that come with the chart, made from the catalogue of hardware."""

    enabled: bool = True
    """Whether they are made; turn off to write your own, or for a second release in one cluster."""
    only: list[str] = Field(default_factory=list)
    """Names to make; empty: all of the catalogue."""
    overrides: dict[str, KubernetesObject] = Field(default_factory=dict)
    """Fields of AcceleratorClass.spec by class name, for example your price, or the labels your nodes have:
    `{h100-80g: {pricePerHour: "2.10", nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}}}`."""


class Crds(Values):
    """CustomResourceDefinitions."""

    upgrade: bool = True
    """Whether `helm upgrade` brings them up to date, by a Job before anything else. Helm installs them, and never
    upgrades nor deletes them by itself."""


class NetworkPolicy(Values):
    """Who may reach our pods."""

    enabled: bool = False
    """Whether NetworkPolicies are made: the gateway from `gatewayFrom`, picks over gRPC from `grpcFrom`, metrics from
    `metricsFrom`, no other way in."""
    gateway_from: list[KubernetesObject] = Field(default_factory=list)
    """NetworkPolicy peers that may send requests; empty: everybody in the cluster."""
    grpc_from: list[KubernetesObject] = Field(default_factory=list)
    """NetworkPolicy peers that may ask for picks over gRPC; empty: everybody in the cluster."""
    metrics_from: list[KubernetesObject] = Field(default_factory=list)
    """NetworkPolicy peers that may read metrics; empty: everybody in the cluster."""


class PodMonitor(Values):
    """Prometheus Operator."""

    enabled: bool = False
    """Whether PodMonitors for our roles and for the workers are made; needs the Prometheus Operator's CRDs."""
    interval: Duration = "15s"
    """Time between two scrapes."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels your Prometheus selects monitors by."""


class Dashboard(Values):
    """The Grafana dashboard, as a ConfigMap."""

    enabled: bool = True
    """Whether it is made."""
    labels: dict[str, str] = Field(default_factory=lambda: {"grafana_dashboard": "1"})
    """Labels by which Grafana's sidecar finds dashboards."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the ConfigMap, for example the folder that the sidecar puts it in."""


class Alerts(Values):
    """Alerting rules for Prometheus."""

    enabled: bool = False
    """Whether they are made."""
    form: Literal["PrometheusRule", "ConfigMap"] = "PrometheusRule"
    """As what: for the Prometheus Operator, or as a file `penstock.yaml` for a Prometheus without it."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels your Prometheus selects rules by."""


class ChartValues(Values):
    """All values of the chart."""

    image: Image = Field(default_factory=Image)
    """Our images."""
    watch_namespaces: list[Namespace] = Field(default_factory=list)
    """Namespaces to watch; empty: all. With names, permissions are Roles in exactly those namespaces, which must
    exist; only cluster-scoped objects are read across the cluster."""
    operator: Operator = Field(default_factory=Operator)
    """The operator: ModelDeployments become WorkerPools, and those pods."""
    router: Router = Field(default_factory=Router)
    """The router: the OpenAI gateway in front of all workers."""
    autoscaler: Autoscaler = Field(default_factory=Autoscaler)
    """The autoscaler: signals of the workers as metrics, plans in status, and in mode Auto the workers' number."""
    sidecar: Sidecar = Field(default_factory=Sidecar)
    """The sidecar of decode workers: runs prefill and decode legs for those who pick over gRPC or through Envoy."""
    engines: Engines = Field(default_factory=Engines)
    """EngineClasses that come with the chart."""
    accelerator_classes: AcceleratorClasses = Field(default_factory=AcceleratorClasses)
    """AcceleratorClasses that come with the chart, made from the catalogue of hardware."""
    crds: Crds = Field(default_factory=Crds)
    """CustomResourceDefinitions."""
    network_policy: NetworkPolicy = Field(default_factory=NetworkPolicy)
    """Who may reach our pods."""
    pod_monitor: PodMonitor = Field(default_factory=PodMonitor)
    """Prometheus Operator."""
    dashboard: Dashboard = Field(default_factory=Dashboard)
    """The Grafana dashboard, as a ConfigMap."""
    alerts: Alerts = Field(default_factory=Alerts)
    """Alerting rules for Prometheus."""
    runbook_url: str = ""
    """Where your people read `docs/runbook.md`; dashboard and alerts link to its sections. Empty: no links."""
