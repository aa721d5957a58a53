"""A Ray cluster whose autoscaler brings nodes when a study asks for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

from studies.journal.reader import read_trials
from support.ray_nodes import equisearch, free_port, node, write_images

# how many nodes live when one is left or a minute has passed, and how many there were
NODES = """
import ray, sys, time
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
for second in range(60):
    nodes = ray.nodes()
    living = sum(node["Alive"] for node in nodes)
    if living == 1:
        break
    time.sleep(1)
print(living, len(nodes))
"""


def growing(address):
    """A configuration of Ray's autoscaler: a head without processors, and up to two nodes of one
    processor that are processes of this machine, given back after 6 idle seconds.
    """
    small = {"CPU": 1, "special": 1, "object_store_memory": 10**8}
    lists = [
        "cluster_synced_files",
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "rsync_exclude",
        "rsync_filter",
    ]
    provider = {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True}
    provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "provider": provider,
        "head_node_type": "ray.head.default",  # the provider knows the head by this name alone
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "small": {"resources": small, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }


@pytest.mark.slow
def test_a_head_without_processors_gets_nodes_for_a_study_and_gives_them_back(tmp_path):
    """Ray's autoscaler, with its provider of fake nodes."""
    write_images(images := tmp_path / "mine")
    port = free_port()
    address, config = f"127.0.0.1:{port}", tmp_path / "cluster.yaml"
    config.write_text(json.dumps(growing(address)))
    own = {
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
    }
    # Ray lets workers wait for every other process, which on a busy machine takes minutes
    fake = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_worker_niceness": "0",
    }
    head = ["--head", "--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--port={port}"]
    with tempfile.TemporaryDirectory(prefix="ray") as short:
        head += ["--num-cpus=0", f"--temp-dir={short}", f"--autoscaling-config={config}"]
        with node(sys.executable, tmp_path / "head", *head, **own, **fake):
            # fake nodes do not say their memory before they exist
            given = ["--ray-address", address, "--set", "resources.memory_per_trial=0"]
            done = equisearch(images, "start", "study.yaml", "out", *given, **own)
            assert done.returncode == 0, done.stderr
            nodes = subprocess.run(
                [sys.executable, "-c", NODES, address],
                capture_output=True,
                text=True,
                env={**os.environ, **own},
                timeout=120,
            )
    living, all_nodes = map(int, nodes.stdout.split())
    assert living == 1 and 1 < all_nodes <= 3, nodes.stderr
    records = [record for record in read_trials(images / "out") if record.state != "refused"]
    assert len(records) == 3 and {record.state for record in records} <= {"complete", "pruned"}
