"""The workers of a run on Ray: what a trial needs, where a cluster has room for it, how many
workers to ask for, and which of them do what.

Workers are asked for as actors that wait until there is room. A cluster with an autoscaler sees
these as its demand and grows; on one without, they start as soon as others leave.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studies.config import Study
from studies.search.assignments import Assignment
from studies.workers.cluster import Node, answered, autoscaled, living_nodes
from studies.workers.executors import TrainableName
from studies.workers.gpu_share import gpus_of_trial
from studies.workers.ray_worker import Worker

RayOwner = Literal["local", "cluster", "caller"]  # whose Ray it is (`studies.workers.cluster`)


@dataclass(frozen=True)
class Room:
    """The room for trials on Ray at a moment."""

    total: int  # trials that its nodes could hold, were nothing else there
    free: int  # trials that fit beside what is there
    grows: bool  # whether an autoscaler starts nodes for what waits
    nodes: str  # what there is, for people


class PoolWorker:
    """A worker of the pool: its actor, what it is doing, and when it was last heard."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.assignment: Assignment | None = None
        self.heard = time.monotonic()
        self.longest: float | None = None  # silence of its trial, seconds


class Members:
    """The workers of a pool, by what they do; each is in one of four sets."""

    def __init__(self) -> None:
        # in the order in which they came, so that the last to become idle is the first to leave
        self.starting: dict[PoolWorker, None] = {}
        self.idle: dict[PoolWorker, None] = {}
        self.busy: dict[PoolWorker, None] = {}
        # cannot see what it needs: it keeps its place, so that no other starts there
        self.blind: dict[PoolWorker, None] = {}

    def __len__(self) -> int:
        return len(self.starting) + len(self.idle) + len(self.busy) + len(self.blind)

    def __contains__(self, member: PoolWorker) -> bool:
        return any(member in members for members in self._sets)

    def all(self) -> list[PoolWorker]:
        """Every member."""
        return [member for members in self._sets for member in members]

    def move(self, member: PoolWorker, to: dict[PoolWorker, None] | None) -> None:
        """Puts a member, or a new one, into one of the sets; None takes it out."""
        for members in self._sets:
            members.pop(member, None)
        if to is not None:
            to[member] = None

    @property
    def _sets(self) -> tuple[dict[PoolWorker, None], ...]:
        return self.busy, self.idle, self.starting, self.blind

    @property
    def ready(self) -> int:
        """How many have started and see what they need."""
        return len(self.idle) + len(self.busy)


def wanted(
    workers: int | Literal["auto"], members: Members, room: Room, left: int, *, alone: bool
) -> int:
    """How many workers a run asks for, those that wait for room included.

    `left` is how many trials may still end, `alone` whether nothing else uses this Ray and it
    never grows. A number of workers is asked for at once. `auto` takes what is free, and then asks
    for more: for as many again as have started where the cluster grows (as Ray's own
    `upscaling_speed: 1`), else for one, which starts when others leave or a node joins.
    """
    if workers != "auto":
        most = min(workers, room.total) if alone else workers
    elif alone:
        most = room.total
    elif members.starting:
        most = len(members)
    else:
        most = len(members) + max(room.free, members.ready if room.grows else 0, 1)
    return min(most, left)


class Actors:
    """Starts the workers of one run as Ray actors, and knows where there is room for them."""

    def __init__(
        self, study: Study, directory: Path, trainable: TrainableName, *, place: RayOwner
    ) -> None:
        import ray
        from ray import cloudpickle

        self._ray, self._directory = ray, directory
        self.place: RayOwner = place
        self._given = study
        self._trainable = cloudpickle.dumps(trainable)  # pyright: ignore[reportPrivateImportUsage]
        self.gpus = -1.0
        self.look()

    def look(self) -> tuple[Room, bool]:
        """The room there is now, and whether what a trial gets of a GPU has changed with the nodes:
        what has not started yet must then be asked for anew.
        """
        nodes, grows = answered(self._ask, self._directory)
        gpus = gpus_of_trial(self._given, [node.total for node in nodes])
        changed = gpus != self.gpus
        if changed:
            self.gpus = gpus
            self._prepare(nodes)
        return self._room(nodes, grows), changed

    def _ask(self) -> tuple[list[Node], bool]:
        return living_nodes(), self.place != "local" and autoscaled()

    def _prepare(self, nodes: Sequence[Node]) -> None:
        resources = self._given.resources
        self._memory = memory_of_trial(self._given, nodes)
        # Ray sets OMP_NUM_THREADS to num_cpus before a worker imports anything; a runtime_env would
        # cost 4 s at the start
        own = {"runtime_env": resources.runtime_env} if self.place == "caller" else {}
        self._actor = self._ray.remote(Worker).options(
            num_cpus=resources.cpus_per_trial,
            num_gpus=self.gpus,
            memory=self._memory or None,
            resources=resources.custom or None,
            max_restarts=0,
            **(own if resources.runtime_env else {}),
        )
        self._study = self._ray.put(
            self._given.model_copy(
                update={"resources": resources.model_copy(update={"gpus_per_trial": self.gpus})}
            )
        )

    @property
    def needs(self) -> dict[str, float]:
        """What a trial takes of a node, by the names of Ray's resources."""
        resources = self._given.resources
        needs = {
            "CPU": resources.cpus_per_trial,
            "GPU": self.gpus,
            "memory": self._memory,
            **resources.custom,
        }
        return {name: amount for name, amount in needs.items() if amount > 0}

    @property
    def needs_text(self) -> str:
        """What a trial takes, for people."""
        texts = [
            f"{amount / 1e9:g} GB memory" if name == "memory" else f"{amount:g} {name}"
            for name, amount in self.needs.items()
        ]
        return ", ".join(texts) or "a node"

    def _room(self, nodes: Sequence[Node], grows: bool) -> Room:
        text = (
            ", ".join(
                f"{node.total.get('CPU', 0):g} CPU and {node.total.get('GPU', 0):g} GPU"
                for node in nodes[:5]
            )
            or "none"
        )
        more = f" and {len(nodes) - 5} more" if len(nodes) > 5 else ""
        return Room(
            sum(trials_per_node(self.needs, node.total) for node in nodes),
            sum(trials_per_node(self.needs, node.free) for node in nodes),
            grows,
            text + more,
        )

    def start(self) -> PoolWorker:
        """A new worker, which waits until there is room for it."""
        return PoolWorker(
            self._actor.remote(self._study, self._trainable, str(self._directory), sys.path)
        )

    def exchange(self, member: PoolWorker, answer: Any) -> Future:
        """Sends an answer to a worker; its next message is the future's result."""
        return member.actor.exchange.remote(answer).future()

    def end(self, member: PoolWorker) -> None:
        """Ends a worker, or withdraws the demand for it."""
        self._ray.kill(member.actor)


def memory_of_trial(study: Study, nodes: Sequence[Node]) -> int:
    """Bytes that a trial reserves where the number of workers is ours to choose; one trial may run
    on the smallest machine.
    """
    if study.resources.workers != "auto":
        return 0
    largest = max((node.total.get("memory", 0) for node in nodes), default=0) or math.inf
    return int(min(1e9 * study.resources.memory_per_trial, largest))


def trials_per_node(needs: Mapping[str, float], there: Mapping[str, float]) -> int:
    """How many trials fit into what is there of a node."""
    fits = (int(there.get(name, 0) / amount + 1e-9) for name, amount in needs.items())
    return min(fits, default=1)
