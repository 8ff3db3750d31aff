"""How likely a model finds the trained tokens: the loss of tuning and of evaluation.

Logits are formed only where the loss is, a chunk of positions at a time, and the gradient on the
hidden states is formed on the way, so the full logits never exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfchat.template.renderer import Example

_CHUNK = 512  # positions whose logits exist at once


class _FrozenHeadLoss(torch.autograd.Function):
    """Summed cross-entropy of `softmax(hidden Wᵀ)`; the head W (vocabulary, hidden) is frozen."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), _CHUNK):
            here = slice(start, start + _CHUNK)
            logits = (hidden[here] @ head.T).float()
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            at = targets[here].unsqueeze(1)
            total += (log_sum - logits.gather(1, at)).sum()
            if gradient is not None:
                slope = logits.sub_(log_sum).exp_()
                slope.scatter_add_(1, at, torch.full_like(at, -1, dtype=slope.dtype))
                gradient[here] = slope.to(head.dtype) @ head
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * outer.to(ctx.gradient.dtype), None, None


def summed_loss(model: Any, examples: Sequence[Example]) -> tuple[Tensor, int]:
    """Cross-entropy in nats summed over the trained tokens of all examples, and their count.

    Examples are padded on the right: with causal attention no real token sees padding, so the
    result is that of each example alone.
    """
    device = next(model.parameters()).device
    width = max(len(example.token_ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    trained = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        trained[row, : len(example.loss_mask)] = torch.tensor(example.loss_mask, dtype=torch.bool)
    ids, trained = ids.to(device), trained[:, 1:].to(device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    head = model.get_output_embeddings().weight
    total: Tensor = _FrozenHeadLoss.apply(hidden[trained], head, ids[:, 1:][trained])  # type: ignore[no-untyped-call]
    return total, int(trained.sum())


def micro_batches(examples: Sequence[Example], token_budget: int) -> list[list[Example]]:
    """Group examples of similar length so that each padded group holds at most `token_budget`.

    An example longer than the budget is a group of its own. The order is by falling length.
    """
    groups: list[list[Example]] = []
    for example in sorted(examples, key=lambda each: len(each.token_ids), reverse=True):
        if groups and len(groups[-1][0].token_ids) * (len(groups[-1]) + 1) <= token_budget:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups
