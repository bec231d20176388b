"""Two processes with two devices each: a process reads its half of a file and computes its half of fresh parameters."""

import json
import os
import socket
import subprocess
import sys

from altclip_jax.assets import default_checkpoint

PROGRAM = """
import json, os, sys, traceback
import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(
    sys.argv[1], num_processes=2, process_id=int(sys.argv[2]),
    initialization_timeout=60, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=15,
)
from altclip_jax import AltCLIPModel, parallel
from altclip_jax.weights.convert import flatten
from altclip_jax.weights.stored_file import StoredFile

counted = [0]
read_into = StoredFile._read_into

def counting(self, buffer, begin):
    counted[0] += len(buffer)
    read_into(self, buffer, begin)

def differences(sharded, whole):
    sharded, whole = flatten(sharded), flatten(whole)
    return [
        path for path, leaf in sharded.items() for shard in leaf.addressable_shards
        if np.asarray(shard.data).tobytes() != np.asarray(whole[path])[shard.index].tobytes()
    ]

def main():
    mesh, found = parallel.make_mesh(fsdp=4), {}
    StoredFile._read_into = counting
    model, params = AltCLIPModel.from_pretrained(sys.argv[3], mesh=mesh)
    found["read"] = counted[0]
    _, whole = AltCLIPModel.from_pretrained(sys.argv[3])
    found["different"] = differences(params, whole)
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    sizes = {shard.data.size * 4 / leaf.size for leaf in matrices for shard in leaf.addressable_shards}
    found["shards"] = sorted(sizes)
    found["shards of a matrix"] = sorted({len(leaf.addressable_shards) for leaf in matrices})
    key, parts = jax.random.key(1), {"text_projection/kernel", "text_model/token_embedding/embedding"}
    fresh = model.init_params(key, parts.__contains__, mesh=mesh)
    found["different fresh"] = differences(fresh, model.init_params(key, parts.__contains__))
    total = jax.jit(lambda tree: sum(leaf.astype(np.float32).sum() for leaf in jax.tree.leaves(tree)))
    found["sum"] = float(total(params))
    print("found " + json.dumps(found), flush=True)

try:
    main()
except BaseException:
    traceback.print_exc()
    os._exit(1)
"""


def test_each_process_reads_its_half_of_the_file():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = default_checkpoint()
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", PROGRAM, address]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, error) in zip(processes, ends, strict=True):
        assert process.returncode == 0, out + error
    found = [json.loads(out.split("found ")[1]) for out, _ in ends]
    size = (folder / "model.safetensors").stat().st_size
    for one in found:
        assert 0.5 * size < one["read"] < 0.52 * size  # small vectors and the header are read by both
        assert (one["different"], one["different fresh"]) == ([], [])
        assert (one["shards"], one["shards of a matrix"]) == ([1.0], [2])
    assert found[0]["sum"] == found[1]["sum"]
