"""Training as MEND's authors' code does it, against that code's formulas written out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from mend_core.errors import TrainingError
from mend_core.testing import swapped_facts, tiny_base
from mend_core.training import TrainConfig, Trainer
from mend_core.training.objective import choose_items

EDITS = swapped_facts(8)
STEPS = 22
RATE = 1e-4


def trainer_of(base, folder, **own):
    config = TrainConfig.from_dict(
        {
            "released": True,
            "steps": STEPS,
            "lr": RATE,
            "editor": {"rank": 8, "learning_rate": 1e-3, **own},
            "validate_every": 1000,
        }
    )
    return Trainer(base, EDITS, EDITS[:2], config, folder, data_digest="d")


class ByHand:
    """One network for all matrices of a shape: running statistics, two layers, α; no library."""

    def __init__(self, base, networks):
        self.base, self.names = base, networks.names
        self.place = dict(networks.place)
        self.layers = {
            key: [
                {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}
                for layer in net.net.layers
            ]
            for key, net in networks.nets.items()
        }
        self.alpha = networks.learning_rates.detach().clone().requires_grad_()
        self.seen = {key: [] for key in networks.nets}

    @property
    def parameters(self):
        found = [p for layers in self.layers.values() for layer in layers for p in layer.values()]
        return [*found, self.alpha]

    def run(self, item, weights=None):
        named = {"input_ids": item.input_ids[None]}
        if self.base.kind == "seq2seq":
            start = self.base.model.config.decoder_start_token_id
            named["decoder_input_ids"] = torch.cat((torch.tensor([start]), item.labels[:-1]))[None]
        found = functional_call(
            self.base.model, weights or {}, kwargs={**named, "use_cache": False}
        )
        return found.logits[0].float()

    def nll(self, logits, item):
        labels = item.labels
        if self.base.kind == "causal":
            logits, labels = logits[:-1], labels[1:]
        return F.cross_entropy(logits, labels, ignore_index=-100)

    def edited(self, item):
        weights, inputs, outputs, handles = {}, {}, {}, []
        for name in self.names:
            module = self.base.by_name[name].module

            def hook(_module, args, output, name=name):
                inputs[name], outputs[name] = args[0].detach(), output.requires_grad_()
                return outputs[name]

            handles.append(module.register_forward_hook(hook))
        with torch.enable_grad():
            loss = self.nll(self.run(item), item)
            grads = torch.autograd.grad(loss, [outputs[name] for name in self.names])
        for handle in handles:
            handle.remove()
        for number, (name, grad) in enumerate(zip(self.names, grads, strict=True)):
            u, delta = inputs[name][0], grad[0]
            live = (u != 0).any(-1) & (delta != 0).any(-1)
            key, mode = self.place[name]
            rows = torch.cat((u, delta), dim=1)[live]
            self.seen[key].append(rows)
            every = torch.cat(self.seen[key]).double()  # all rows so far, this matrix' included
            z = (rows - every.mean(0)) / (every.std(0) + 1e-7)
            z = z.float()
            for layer in self.layers[key]:
                a = z @ layer["v"].T @ layer["u"].T + layer["bias"]
                z = z + (a * layer["scale"][mode] + layer["shift"][mode]).clamp(min=0)
            pseudo_u, pseudo_delta = z.split((u.shape[1], delta.shape[1]), dim=1)
            change = self.alpha[number] * pseudo_delta.T @ pseudo_u
            matrix = self.base.by_name[name]
            change = change.T if matrix.transposed else change
            weights[name] = matrix.parameter.detach() + change  # plus
        return weights

    def loss(self, edit, rephrase, near):
        weights = self.edited(edit)
        with torch.no_grad():
            before = self.run(near).log_softmax(-1)
        after = self.run(near, weights).log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1).mean()  # at every token
        return 0.1 * self.nll(self.run(rephrase, weights), rephrase) + kl


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_a_run_of_the_authors_code_is_reproduced(tmp_path, family):
    base = tiny_base(family)
    trainer = trainer_of(base, tmp_path)
    mine = ByHand(base, copy.deepcopy(trainer.trainable.networks))
    optimiser = torch.optim.Adam(mine.parameters, lr=RATE)
    for step in range(STEPS):
        groups, others, picks = trainer.draw(step)
        assert [len(g) for g in groups] == [1]
        (mine.loss(*choose_items(groups[0], others, picks)) / 10).backward()
        if step > 0 and step % 10 == 0:
            torch.nn.utils.clip_grad_norm_(mine.parameters, 100.0)
            optimiser.step()
            optimiser.zero_grad()
    start = copy.deepcopy(trainer.trainable.networks)
    trainer.run()
    trainer.trainable.module.load_state_dict(trainer.best)
    networks = trainer.trainable.networks
    for key, net in networks.nets.items():
        assert int(net.norm_u.count) == sum(len(rows) for rows in mine.seen[key])
        for number, layer in enumerate(net.net.layers):
            first = dict(start.nets[key].net.layers[number].named_parameters())
            for name, parameter in layer.named_parameters():
                assert torch.allclose(parameter, mine.layers[key][number][name], atol=3e-6), name
                assert (parameter - first[name]).abs().max() > 3e-5  # it moved
    assert torch.allclose(networks.learning_rates, mine.alpha, atol=1e-6)


def test_released_training_brings_the_authors_settings():
    config = TrainConfig.from_dict({"released": True})
    assert (config.outer, config.locality_tokens, config.max_edits) == ("rephrase", "all", 1)
    assert (config.accumulate, config.lr, config.lr_lr, config.clip) == (10, 1e-6, 1e-4, 100)
    assert TrainConfig.from_dict({"released": True, "lr": 1e-3}).lr == 1e-3
    for wrong in ({"outer": "own"}, {"locality_tokens": "none"}):
        with pytest.raises(TrainingError, match="one of"):
            TrainConfig.from_dict(wrong)
