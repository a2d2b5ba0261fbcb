"""Log-probs of the wanted tokens, with gradient, and nothing for the others.

A vocabulary is a hundred times wider than a hidden state: only hidden states that predict a wanted
token reach the head, and many of them go in chunks whose logits are recomputed in the backward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lr_ray.training import shared_prefix
from lr_ray.training.batch import Padded, PairIds

# Logits of one chunk of the head: 128 MiB in float32, whatever the vocabulary.
_CHUNK_LOGITS = 2**25
# Steps between hidden state and logits that some families add in their own forward.
_LOGIT_TWEAKS = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "output_multiplier": 1.0,
    "lm_head_multiplier": 1.0,
}


def pair_logps(
    model: nn.Module,
    prompt_ids: Sequence[int] | torch.Tensor,
    chosen_ids: Sequence[int] | torch.Tensor,
    rejected_ids: Sequence[int] | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs with gradient of each token of two answers to one prompt, which is computed once.

    Args:
        model: a transformers causal language model on any device. Its attention is switched to ours for
            good; whatever it could do before, it still does.
        prompt_ids: token ids [prompt], not empty.
        chosen_ids: token ids [chosen], with the token that ends the answer.
        rejected_ids: token ids [rejected].

    Returns:
        (chosen [chosen], rejected [rejected]) in float32, or in float64 for such a model.

    Raises:
        ValueError: an empty part, more tokens than the model's window, or a model whose attention or
            logits a stream would get wrong; the sentence says which.
    """
    given = (prompt_ids, chosen_ids, rejected_ids)
    prompt, chosen, rejected = (torch.as_tensor(part, dtype=torch.long).tolist() for part in given)
    pair = PairIds(prompt, chosen, rejected)
    longest = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
    causal: Any = model
    window = getattr(causal.config, "max_position_embeddings", None)
    if window is not None and longest > window:
        raise ValueError(f"{longest} tokens do not fit into the model's window of {window}")
    reason = shared_prefix.enable(model, longest)
    if reason:
        raise ValueError(reason)
    logps = Policy(model)(shared_prefix.stream([pair]).to(causal.device))
    return logps[: len(chosen)], logps[len(chosen) :]


def refuse(config: Any) -> None:
    """Refuse a model whose config changes its logits in a way this module would miss.

    Raises:
        ValueError: which way.
    """
    for name, neutral in _LOGIT_TWEAKS.items():
        if getattr(config, name, None) not in (None, neutral):
            raise ValueError(f"model type {config.model_type}: {name} is not supported in training")


class Policy(nn.Module):
    """A causal language model as a function from batches to log-probs; DeepSpeed wraps this.

    Raises:
        ValueError: the model changes its logits in a way this module would miss.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        refuse(model.config)
        _chunked(model)
        self.model = model

    def forward(self, batch: "Padded | shared_prefix.Stream") -> torch.Tensor:
        """Log-probs [targets] in float32 (float64 for such a model), in the batch's order."""
        if isinstance(batch, shared_prefix.Stream):
            return head_logps(self.model, shared_prefix.hidden_states(self.model, batch), batch.labels)
        hidden = decode(self.model, input_ids=batch.ids)
        wanted = batch.targets[:, 1:]
        return head_logps(self.model, hidden[:, :-1][wanted], batch.ids[:, 1:][wanted])


def decode(model: nn.Module, **inputs: Any) -> torch.Tensor:
    """Last hidden states [sequences, width, hidden] of the model's decoder."""
    causal: Any = model
    return causal.get_decoder()(use_cache=False, **inputs).last_hidden_state


def head_logps(model: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p(label) [n] for hidden states [n, hidden] that predict labels [n].

    Many of them go in chunks, whose logits live one chunk at a time in the backward pass as well.
    """
    return _chunked(model)(hidden, labels)


def _chunked(model: nn.Module) -> nn.Module:
    """The head of `model`, whose forward gives log-probs in chunks where it gets labels as well.

    All chunks are one call of the module: ZeRO-3 gathers a module's weights with all ranks at every call,
    and ranks with more wanted tokens than others have more chunks.
    """
    causal: Any = model
    head = causal.get_output_embeddings()
    if not isinstance(head.forward, _Chunked):
        head.forward = _Chunked(head.forward, causal.config.vocab_size)
        head._z3_leaf = True  # to DeepSpeed: gather what lies below with it (an adapter), in one go
    return head


class _Chunked:
    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], vocabulary: int) -> None:
        self._forward, self._vocabulary = forward, vocabulary

    def __call__(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if labels is None:
            return self._forward(hidden)
        size = max(1, _CHUNK_LOGITS // self._vocabulary)
        parts = zip(hidden.split(size), labels.split(size), strict=True)
        if torch.is_grad_enabled() and len(labels) > size:
            return torch.cat([checkpoint(self._logps, *part, use_reentrant=False) for part in parts])
        return torch.cat([self._logps(*part) for part in parts])

    def _logps(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self._forward(hidden)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        return -functional.cross_entropy(logits, labels, reduction="none")
