"""The pools of a model, and the hooks that put their prompts in front of what its backbone reads."""

import inspect
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hf_lifealign._modes import evaluating
from hf_lifealign.prompt_pool.config import L2PConfig
from hf_lifealign.prompt_pool.pool import chosen_prompts, mean_features, prompt_mask, pull_loss


class PromptPool(nn.Module):
    """Prompts and their keys.

    Args:
        config ([`L2PConfig`]): sizes.
        embed (`torch.nn.Module`): the base's token embeddings. Prompts start as tokens drawn from the vocabulary, keys
            with components drawn from [-1, 1].
    """

    def __init__(self, config: L2PConfig, embed: Any):
        super().__init__()
        vocabulary, device = embed.weight.shape[0], embed.weight.device
        drawn = torch.randint(vocabulary, (config.pool_size, config.prompt_length))
        with torch.no_grad():  # through the module: some scale what they hold
            self.prompts = nn.Parameter(embed(drawn.to(device)).clone())
        keys = torch.empty(config.pool_size, self.prompts.shape[-1]).uniform_(-1, 1)
        self.keys = nn.Parameter(keys.to(device=device, dtype=self.prompts.dtype))
        self.top_k = config.top_k
        self.pull_weight = config.pull_weight

    @property
    def length(self) -> int:
        """Tokens that are put in front of a row."""
        return self.top_k * self.prompts.shape[1]

    def forward(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts for queries of shape `(rows, features)`: `(rows, length, features)`, and the cosines to their keys,
        `(rows, top_k)`."""
        # in float32 whatever the autocast: training and evaluation have to choose alike
        with torch.autocast(self.keys.device.type, enabled=False):
            query = query.to(device=self.keys.device, dtype=torch.float32)
            indices, similarity = chosen_prompts(query, self.keys.float(), self.top_k)
        return self.prompts[indices].flatten(1, 2), similarity


class PromptPools(nn.Module, BaseTunerLayer):
    """The pools of a model by adapter, a child of its backbone.

    `before` and `after` are hooks of the backbone: rows get longer on their way in, and what comes out is of the length
    they had, so that heads, losses and generation need not know. While a row is continued from a cache, the prompts
    stand there already.
    """

    adapter_layer_names = ("l2p_pool",)

    def __init__(self) -> None:
        super().__init__()
        self.l2p_pool = nn.ModuleDict()
        self._disable_adapters = False
        self._active_adapter = []
        self.merged_adapters = []
        # of the rows that are read next, tokens of each prompt; the whole row where nobody has told
        self.prompt_lengths: torch.Tensor | None = None
        # of the rows that were read last with gradients: cosines to the chosen keys, of shape `(rows, top_k)`
        self._similarity: torch.Tensor | None = None
        self._added = 0
        self._asks = False

    def __getstate__(self) -> dict[str, Any]:
        # what belongs to one forward is no part of a copy
        return {**super().__getstate__(), "_similarity": None, "prompt_lengths": None}

    # Pools wrap no layer: PEFT would look for the weights of one without an end.
    @property
    def weight(self) -> torch.Tensor:
        raise AttributeError("Prompt pools wrap no layer that would have a weight.")

    @property
    def bias(self) -> torch.Tensor:
        raise AttributeError("Prompt pools wrap no layer that would have a bias.")

    @property
    def active_pool(self) -> PromptPool | None:
        """The pool in use."""
        names = [name for name in self.active_adapters if name in self.l2p_pool]
        if self.disable_adapters or not names:
            return None
        if len(names) > 1:
            raise ValueError(f"You set the adapters {names} active together. Of L2P one pool can be in use at a time.")
        pool: PromptPool = self.l2p_pool[names[0]]  # type: ignore[assignment]
        return pool

    def add(self, adapter_name: str, config: L2PConfig, embed: nn.Module) -> None:
        """Adds the pool of an adapter; see [`PromptPool`]."""
        self.l2p_pool[adapter_name] = PromptPool(config, embed)

    def take_pull(self) -> torch.Tensor | None:
        """The weighed loss of the keys for the rows that were read last with gradients (scalar), once; `None` where
        there were none."""
        similarity, self._similarity = self._similarity, None
        pool = self.active_pool
        if similarity is None or pool is None or not pool.pull_weight:
            return None
        return pool.pull_weight * pull_loss(similarity)

    def before(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Puts prompts in front of the rows that the backbone is about to read."""
        pool = None if self._asks else self.active_pool
        self._added = 0
        if pool is None:
            return None
        given = dict(zip(inspect.signature(backbone.forward).parameters, args, strict=False)) | kwargs
        mask = given.get("attention_mask")
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
            raise ValueError(
                "An L2P adapter puts prompts in front of a row, and cannot extend an attention mask that is not of the "
                "shape (rows, tokens). Switch pair packing and static caches off."
            )
        cache = given.get("past_key_values")
        seen = cache.get_seq_length() if cache is not None else 0
        if seen:
            return (), self._continued(given, pool.length, seen)
        rows = given["inputs_embeds"] if given.get("inputs_embeds") is not None else given["input_ids"]
        self._refuse_what_does_not_fit(backbone, given, rows.shape[1] + pool.length)
        prompts, similarity = pool(self._query(backbone, given, rows))
        if similarity.requires_grad:  # a reference that is read in between has none
            self._similarity = similarity
        embeds = given.get("inputs_embeds")
        if embeds is None:
            embeds = backbone.get_input_embeddings()(rows)  # type: ignore[operator]
        given["input_ids"] = None
        given["inputs_embeds"] = torch.cat([prompts.to(embeds), embeds], dim=1)
        self._added = pool.length
        return (), self._lengthened(given, pool.length, start=True)

    @staticmethod
    def _refuse_what_does_not_fit(backbone: Any, given: dict[str, Any], tokens: int) -> None:
        room = getattr(backbone.config, "max_position_embeddings", None)
        if room is not None and tokens > room:
            raise ValueError(
                f"With the prompts of an L2P adapter a row has {tokens} tokens, and the model has room for {room}. Cut "
                "the rows shorter (max_length)."
            )
        if given.get("return_dict") is False:
            raise ValueError("You set return_dict=False, from which an L2P adapter cannot take its prompts out again.")

    def _continued(self, given: dict[str, Any], length: int, seen: int) -> dict[str, Any]:
        new = given["inputs_embeds"] if given.get("inputs_embeds") is not None else given["input_ids"]
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        # a mask that hides nothing is dropped by generate(): then positions alone tell
        fits = mask is None or mask.shape[1] == seen - length + new.shape[1]
        if mask is None and positions is not None:
            fits = bool((positions[:, 0] == seen - length).all())
        if not fits:
            raise ValueError(
                f"The cache holds {seen} tokens, of which {length} would have to be prompts of the L2P adapter; mask "
                f"or positions of the {new.shape[1]} new tokens count otherwise. generate() can go on only from caches "
                "that the same call has filled. Start with an empty cache."
            )
        return self._lengthened(given, length, start=False)

    @staticmethod
    def _lengthened(given: dict[str, Any], length: int, start: bool) -> dict[str, Any]:
        """Mask and positions of rows with prompts in front, which may stand in the cache already."""
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is not None:
            given["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], length), mask], dim=1)
        if positions is not None:
            moved = positions + length
            front = torch.arange(length, device=moved.device, dtype=moved.dtype).expand(moved.shape[0], -1)
            given["position_ids"] = torch.cat([front, moved], dim=1) if start else moved
        return given

    @torch.no_grad()
    def _query(self, backbone: nn.Module, given: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
        """What the untouched base makes of the rows' prompts, of shape `(rows, features)`."""
        mask = given.get("attention_mask")
        mask = torch.ones(rows.shape[:2], device=rows.device) if mask is None else mask
        lengths = self.prompt_lengths
        if lengths is not None and len(lengths) != len(rows):
            raise ValueError(f"The lengths of {len(lengths)} prompts were told, and {len(rows)} rows are read.")
        counted = prompt_mask(mask, lengths)
        end = int(counted.any(dim=0).nonzero().max()) + 1
        asked = {"inputs_embeds" if rows.dim() == 3 else "input_ids": rows[:, :end]}
        if given.get("position_ids") is not None:
            asked["position_ids"] = given["position_ids"][:, :end]
        self._asks = True
        try:
            with evaluating(backbone):
                found = backbone(**asked, attention_mask=mask[:, :end], use_cache=False, return_dict=True)
        finally:
            self._asks = False
        return mean_features(found.last_hidden_state.to(counted.device), counted[:, :end])

    def after(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Takes the places of prompts out of what the backbone has written."""
        added, self._added = (0, self._added) if self._asks else (self._added, 0)
        if not added:
            return None
        last = output.last_hidden_state[:, added:]
        if self._similarity is not None:
            # what comes out does not depend on the keys; but whoever looks for the parameters that it depends on (DDP,
            # strategies that take gradients of it) has to find them
            last = last + 0 * self._similarity.sum().to(last)
        output.last_hidden_state = last
        if getattr(output, "hidden_states", None) is not None:
            output.hidden_states = tuple(each[:, added:] for each in output.hidden_states)
        return output
