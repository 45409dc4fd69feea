"""python shard_on_cpu.py SCRIPT ...: a script in which accelerate shards a model over CPU processes, as over GPUs.

accelerate 1.15 passes FSDP over where the processes are CPUs, though torch's fully_shard runs there with gloo; so that
recipes/fsdp.yaml can be tried without a GPU, this tells accelerate's state that it may.
"""

import os
import runpy
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

make_state = AcceleratorState.__init__


def make_sharding_state(self, *args, fsdp_plugin=None, **kwargs):
    make_state(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # every later state is made from it


if __name__ == "__main__":
    AcceleratorState.__init__ = make_sharding_state
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.getcwd())
    runpy.run_path(sys.argv[0], run_name="__main__")
