"""ENN and KE in training: the methods that look at the edit itself, not only at its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mend_core.editors.enn import EnnEditor, EnnNetworks
from mend_core.editors.ke import KeEditor, KeNetworks, conditions
from mend_core.models import Base, Encoded
from mend_core.training.change import Pairs, Shifted, padded
from mend_core.training.examples import Example, stack
from mend_core.training.trainable import Trainable


class EnnTrainable(Trainable):
    """ENN in training, second order through its inner steps; see `mend_core.editors.enn`.

    Args:
        base: The base.
        networks: What is trained.
        shapes: Edited matrix → (d_out, d_in).
    """

    def __init__(
        self, base: Base, networks: EnnNetworks, shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        super().__init__(base, networks, shapes)
        self.networks = networks

    def rates(self) -> list[nn.Parameter]:
        """See `Trainable.rates`: η."""
        return [self.networks.learning_rates]

    def change(self, groups: Sequence[Sequence[Example]]) -> Shifted:
        """See `Trainable.change`; one inner forward and backward for all groups together."""
        encoded, hidden = prompts(self.base, groups)
        pairs = self.networks(self.base, encoded, hidden, len(groups))
        return Shifted(self.networks.shift, pairs)

    def editor(self, samples: Sequence[Example]) -> EnnEditor:  # noqa: ARG002 - nothing to fit
        """See `Trainable.editor`."""
        return EnnEditor(self.base.digest, self.shapes, self.networks)


class KeTrainable(Trainable):
    """KE in training; see `mend_core.editors.ke`.

    Args:
        base: The base.
        networks: What is trained.
        shapes: Edited matrix → (d_out, d_in).
    """

    def __init__(
        self, base: Base, networks: KeNetworks, shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        super().__init__(base, networks, shapes)
        self.networks = networks
        self.first_block = min(base.by_name[name].block for name in shapes)

    def change(self, groups: Sequence[Sequence[Example]]) -> Pairs:
        """See `Trainable.change`."""
        encoded, hidden = prompts(self.base, groups)
        examples = [example for group in groups for example in group]
        edits = [example.edit for example in examples]
        read = conditions(self.base, edits, encoded, hidden, self.first_block)
        made = [
            self.networks(embedded, example.rows)
            for embedded, example in zip(read, examples, strict=True)
        ]
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.shapes:
            lengths = iter([len(rows[name][0]) for rows in made])
            sizes = [sum(next(lengths) for _ in group) for group in groups]
            keys, values = (torch.cat([rows[name][side] for rows in made]) for side in (0, 1))
            pairs[name] = (padded(keys, sizes), padded(values, sizes))
        return Pairs(pairs)

    def editor(self, samples: Sequence[Example]) -> KeEditor:  # noqa: ARG002 - nothing to fit
        """See `Trainable.editor`."""
        return KeEditor(self.base.digest, self.shapes, self.networks)


def prompts(base: Base, groups: Sequence[Sequence[Example]]) -> tuple[Encoded, Tensor | None]:
    """The edits' own prompts with targets, group after group, and their hidden states."""
    return stack(base, [example.of("edit")[0] for group in groups for example in group])
