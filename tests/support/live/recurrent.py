"""Layers and losses of torch that stumble a recorder."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from .table import case, data, loss_of, mlp, train


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 5, 2, batch_first=True, dropout=0.2), nn.GRU(5, 4, bidirectional=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, (h, c) = self.lstm(packed)
        out, _ = rnn.pad_packed_sequence(out, batch_first=True)
        out, _ = self.gru(out)
        return self.head(out), h + c


@case()
def packed_sequences():
    """Packed sequences through an LSTM with dropout, then a GRU in both directions."""

    def step(model, i):
        return train(model, data(3, 4, 6), torch.tensor([4, 2, 3]))

    return Packed(), step


@case()
def recurrent_states():
    """LSTM states handed from call to call, detached between steps."""
    states: list = [None]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 5), nn.Linear(5, 3)

        def forward(self, x, state):
            out, state = self.lstm(x, state)
            return self.head(out), state

    def step(model, i):
        a, state = model(data(4, 2, 6), states[0])
        b, state = model(data(4, 2, 6, seed=3), state)
        loss_of([a, b]).backward()
        states[0] = tuple(s.detach() for s in state)
        return a, b, list(state)

    return Model(), step


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.cond(x.sum() > 0, lambda y: self.a(y).relu(), lambda y: self.b(y).tanh(), (x,))
        return self.head(h)


@case()
def cond():
    """torch.cond, both ways."""

    def step(model, i):
        return train(model, data(5, 6).abs() * (1 if i % 2 else -1))

    return Conditional(), step


@torch.jit.script
def scripted_activation(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.7 * x)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.part = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))

    def forward(self, x):
        return self.head(scripted_activation(self.part(self.a(x))))


@case()
def scripted():
    """A ScriptModule and a scripted function inside."""

    def step(model, i):
        return train(model, data(5, 6))

    return Scripted(), step


class Spoken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.loss = mlp(6, 8, 5), nn.CTCLoss(zero_infinity=True)

    def forward(self, x, targets):
        logits = self.net(x)
        lengths = torch.full((x.shape[1],), x.shape[0])
        return self.loss(logits.log_softmax(-1), targets, lengths, torch.full((len(targets),), 3)), logits


@case()
def ctc_inside():
    """A CTC loss inside forward."""

    def step(model, i):
        loss, logits = model(data(8, 2, 6), torch.tensor([[1, 2, 3], [3, 3, 1]]))
        loss.backward()
        return loss, logits

    return Spoken(), step


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(6, 8, 8), mlp(4, 8, 6)

    def forward(self, x):
        mean, spread = self.encoder(x).chunk(2, -1)
        q = torch.distributions.Normal(mean, F.softplus(spread))
        z = q.rsample()
        p = torch.distributions.Independent(torch.distributions.Bernoulli(logits=self.decoder(z)), 1)
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(4), torch.ones(4)))
        choice = torch.distributions.Categorical(logits=mean)
        action = choice.sample()
        return -p.log_prob((x > 0).double()).mean() + kl.mean(), z, choice.log_prob(action), choice.entropy()


@case(same=True)
def distributions():
    """A VAE and a policy with torch.distributions, validation on."""

    def step(model, i):
        loss, *rest = model(data(5, 6))
        (loss + loss_of(rest)).backward()
        return loss, *rest

    return Variational(), step
