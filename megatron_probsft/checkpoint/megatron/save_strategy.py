"""Which rank writes what of a checkpoint."""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.exchange_utils import determine_main_replica_uniform_distribution
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from megatron_probsft.runtime.host_copies import storage_of_its_own


class SaveStrategy(TorchDistSaveShardedStrategy):
    """Megatron-Core's own strategy; tensors that data-parallel ranks have in common, these share out."""

    writer: FileSystemWriterAsync
    metadata: Any
    """On rank 0 the blocks of all ranks: torch has checked that they cover each tensor, and once."""

    def async_save(self, sharded_state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Plan the files, and keep the writer. Collective: names and shapes of common tensors go round."""
        tensors = [one for one in nested_values(sharded_state_dict) if isinstance(one, ShardedTensor)]
        common: Any = [one for one in tensors if one.has_regular_grid]  # all but a distributed optimizer's
        group: Any = parallel_state.get_data_parallel_group(with_context_parallel=True)
        shares = determine_main_replica_uniform_distribution(common, group)
        distribute_main_replicas_with_precomputed_distribution(common, group, shares)
        for one in tensors:
            assert one.data is not None
            one.data = storage_of_its_own(one.data)  # the writer would copy a view
        return super().async_save(sharded_state_dict, *args, **kwargs)

    def _get_save_and_finalize_callbacks(
        self, writer: Any, save_state_dict_ret: Any, async_strategy: str
    ) -> Any:
        self.writer, self.metadata = writer, save_state_dict_ret[1]
        if self.metadata is not None:
            self.metadata.all_local_plans = None  # the same blocks once more, for Megatron-Core's cache
        return super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret, async_strategy)
