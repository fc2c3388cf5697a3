"""L2P: one pool of prompts for all tasks, chosen among for each row (Learning to Prompt, arXiv 2112.08654)."""

from typing import TYPE_CHECKING

from hf_lifealign.prompt_pool import L2PConfig
from hf_lifealign.strategies.base import Run, Strategy

if TYPE_CHECKING:
    from hf_lifealign.stream import TaskStream


class L2PStrategy(Strategy):
    """Learns the tasks one after another with an adapter of type L2P ([`L2PConfig`]), which is all there is to it.

    Where no adapter is named, it brings that adapter as it is by default.
    """

    name = "l2p"

    def prepare_stream(self, run: Run, stream: "TaskStream") -> "TaskStream":
        config = run.model.peft_config["default"]
        if not isinstance(config, L2PConfig):
            raise ValueError(
                f"You set the strategy 'l2p' with an adapter of type {config.peft_type.value}. It is about a prompt "
                "pool. Set the adapter's type to l2p, or leave the adapter out."
            )
        return stream
