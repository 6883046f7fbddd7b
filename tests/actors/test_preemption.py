"""A node that will be taken away: Ray's notice reaches the loop, which commits within the grace time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import checkpoints
from pipelines.settings import CheckpointSettings, LearnerSettings, Settings, SyncSettings

DEADLINE_S = 60


@pytest.fixture
def spot_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A second node beside the head's, which alone has the resource "spot"."""
    import ray
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    # Ray replaces a loopback address by the machine's own unless clusters are switched off.
    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
    here = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={**here, "include_dashboard": False})
    node = cluster.add_node(**here, resources={"spot": 1})
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": root, "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2"}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": environment})
    yield SimpleNamespace(id=node.node_id, address=cluster.address)
    ray.shutdown()
    cluster.shutdown()


def _train(config: dict[str, Any]) -> None:
    """A rank's loop with a learner of a few bytes, until a file says stop."""
    import time
    from pathlib import Path
    from types import SimpleNamespace

    from ray import train

    from actors.learner_loop import Loop
    from pipelines.types import Shard

    run_dir = Path(config["run_dir"])
    recipe = SimpleNamespace(
        needs=frozenset(),
        stages=(SimpleNamespace(then=(), freshness=None, uses=1, replay=0.0),),
        ends=lambda steps: (steps,),
    )
    learner = SimpleNamespace(
        rank=train.get_context().get_world_rank(),
        world=1,
        stage=0,
        syncs_adapter=False,
        recipe=recipe,
        train_step=lambda *_: SimpleNamespace(metrics={}, margins=(), applied=True, bad=()),
        barrier=lambda: None,
        canary=lambda _: (),
        stream=lambda: iter(()),
        reference_weights=lambda: None,
        save=lambda folder: (folder / "weights").write_text("w"),
    )

    def pull(attempt: int, step: int, rank: int, world: int) -> Any:
        time.sleep(0.1)
        (run_dir / "trained").write_text(str(step - 1))
        return Shard(step=step, stop=(run_dir / "stop").exists())

    ports = SimpleNamespace(
        pull=pull, trained=lambda *_: None, snapshot=lambda step: {"trained": step}, publish=lambda _: None
    )
    Loop(
        learner=learner,
        ports=ports,
        settings=config["settings"],
        run_dir=run_dir,
        canaries=(),
        attempt=1,
        notice=train.get_preemption_info,
    ).run()


def _until(condition: Any) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, "nothing came in time"
        time.sleep(0.05)


def _trained(run_dir: Path) -> int:
    file = run_dir / "trained"
    return int(file.read_text() or 0) if file.exists() else 0


def test_a_drained_node_is_committed_before_it_goes_and_training_goes_on(
    spot_node: Any, tmp_path: Path
) -> None:
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings = Settings(
        learner=LearnerSettings(steps=10_000),
        sync=SyncSettings(every=10_000),
        checkpoint=CheckpointSettings(every=10_000, keep=9),
    )
    trainer = TorchTrainer(
        _train,
        train_loop_config={"settings": settings, "run_dir": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1, "spot": 1}),
        run_config=RunConfig(storage_path=str(tmp_path / "ray")),
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    try:
        _until(lambda: _trained(tmp_path) >= 2)
        assert checkpoints.newest_verified(tmp_path) is None  # none is due for long
        accepted, why = GcsClient(address=spot_node.address).drain_node(
            spot_node.id,
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "the spot market",
            int((time.time() + DEADLINE_S) * 1000),
        )
        assert accepted, why
        _until(lambda: checkpoints.newest_verified(tmp_path) is not None)
        found = checkpoints.newest_verified(tmp_path)
        assert found is not None and found.step >= 2
        _until(lambda: _trained(tmp_path) > found.step)  # it uses what is left of the grace
    finally:
        (tmp_path / "stop").touch()
        thread.join(DEADLINE_S)
    assert not thread.is_alive() and not failures
