"""The parts of KubeRay's `ray.io/v1` and of Kubernetes' core API that the manifests use, as strict models.

Names, types and choices are those of the Go types that KubeRay's CRDs are generated from
(`ray-operator/apis/ray/v1`, read) and of Kubernetes 1.28 and newer. A key that is not here is refused: add it
with those types at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

ROOT = Path(__file__).parents[2]

# RFC 1123 labels; quantities as Kubernetes writes them.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$")]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Labels = dict[
    Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")], str
]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name


class Resources(Strict):
    limits: dict[str, Quantity]
    requests: dict[str, Quantity]


class Exec(Strict):
    command: list[str]


class Handler(Strict):
    exec: Exec


class Lifecycle(Strict):
    preStop: Handler


class Capabilities(Strict):
    drop: list[Literal["ALL"]]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, Field(pattern="^/")]


class Container(Strict):
    name: Name
    image: str
    securityContext: ContainerSecurity
    resources: Resources
    lifecycle: Lifecycle | None = None
    volumeMounts: list[Mount]


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: Annotated[int, Field(gt=0)]
    runAsGroup: Annotated[int, Field(gt=0)]
    fsGroup: Annotated[int, Field(gt=0)]


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Claim(Strict):
    claimName: Name


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim


class PodSpec(Strict):
    terminationGracePeriodSeconds: Count
    securityContext: PodSecurity
    tolerations: list[Toleration] = []
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume]

    @model_validator(mode="after")
    def _mounts_exist(self) -> PodSpec:
        volumes = {volume.name for volume in self.volumes}
        mounts = {mount.name for container in self.containers for mount in container.volumeMounts}
        if mounts != volumes:
            raise ValueError(f"volumes {volumes}, mounted are {mounts}")
        return self


class PodTemplate(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    enableIngress: bool
    labels: Labels
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: Name
    replicas: Count
    minReplicas: Count
    maxReplicas: Count
    labels: Labels
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _bounds(self) -> WorkerGroup:
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"{self.groupName}: replicas are not between their bounds")
        return self


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]


class Autoscaler(Strict):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: Count
    resources: Resources


class ClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Strict):
    entrypoint: str
    runtimeEnvYAML: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: Count
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Count
    rayClusterSpec: ClusterSpec


class ServiceSpec(Strict):
    serveConfigV2: str
    rayClusterConfig: ClusterSpec


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


class Requests(Strict):
    requests: dict[str, Quantity]


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]]
    resources: Requests


class VolumeClaim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


Manifest = Annotated[RayCluster | RayJob | RayService | VolumeClaim, Field(discriminator="kind")]
ADAPTER: TypeAdapter[Any] = TypeAdapter(Manifest)


class Manifests:
    """The files of deploy/kuberay by name, as written and as checked."""

    def written(self, name: str) -> dict[str, Any]:
        return yaml.safe_load((ROOT / "deploy" / "kuberay" / f"{name}.yaml").read_text())

    def check(self, manifest: dict[str, Any]) -> Any:
        """The strict model of a manifest; raises pydantic's ValidationError."""
        return ADAPTER.validate_python(manifest)


@pytest.fixture
def manifests() -> Manifests:
    return Manifests()
