"""Log-probs of the wanted tokens, with gradient, and nothing for the others.

A vocabulary is a hundred times wider than a hidden state: only hidden states that predict a wanted
token reach the head, and many of them go in chunks whose logits are recomputed in the backward pass.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lr_ray.training import shared_prefix
from lr_ray.training.batch import Padded

_HEAD_CHUNK = 2048
# Steps between hidden state and logits that some families add in their own forward.
_LOGIT_TWEAKS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


class Policy(nn.Module):
    """A causal language model as a function from batches to log-probs; DeepSpeed wraps this.

    Raises:
        ValueError: the model changes its logits in a way this module would miss.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config: Any = model.config
        for name, neutral in _LOGIT_TWEAKS.items():
            if getattr(config, name, None) not in (None, neutral):
                raise ValueError(f"model type {config.model_type}: {name} is not supported in training")
        self.model = model

    def forward(self, batch: "Padded | shared_prefix.Stream") -> torch.Tensor:
        """Log-probs [targets] in float32 (float64 for such a model), in the batch's order."""
        if isinstance(batch, shared_prefix.Stream):
            hidden = shared_prefix.hidden_states(self.model, batch)
            return head_logps(self.model, hidden[0, batch.sources], batch.labels)
        hidden = decode(self.model, input_ids=batch.ids)
        wanted = batch.targets[:, 1:]
        return head_logps(self.model, hidden[:, :-1][wanted], batch.ids[:, 1:][wanted])


def decode(model: nn.Module, **inputs: Any) -> torch.Tensor:
    """Last hidden states [sequences, width, hidden] of the model's decoder."""
    causal: Any = model
    return causal.get_decoder()(use_cache=False, **inputs).last_hidden_state


def head_logps(model: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p(label) [n] for hidden states [n, hidden] that predict labels [n]."""
    chunks = []
    for start in range(0, hidden.shape[0], _HEAD_CHUNK):
        part = hidden[start : start + _HEAD_CHUNK], labels[start : start + _HEAD_CHUNK]
        if torch.is_grad_enabled() and hidden.shape[0] > _HEAD_CHUNK:
            chunks.append(checkpoint(_head, model, *part, use_reentrant=False))
        else:
            chunks.append(_head(model, *part))
    return torch.cat(chunks) if chunks else hidden.new_zeros(0)


def _head(model: nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    causal: Any = model
    logits = causal.get_output_embeddings()(hidden)
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    return -functional.cross_entropy(logits, labels, reduction="none")
