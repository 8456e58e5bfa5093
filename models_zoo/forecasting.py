"""Series and words in plain torch: exponential smoothing with an LSTM, a recurrent network with latent causes, captions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ESRNN", "PVRNN", "Captioner"]


class ESRNN(nn.Module):
    """Exponential smoothing with an LSTM (Smyl 2020): each series has its own smoothing, all share the network.

    Takes [n, 1 + t]: the number of the series, and t positive values; returns the logarithms of the next `ahead`, [n, ahead].
    With level l, seasonality s of m steps, and rates a and g of the series (Holt and Winters, multiplicative):

        l_t = a y_t / s_t + (1 - a) l_(t-1)        s_(t+m) = g y_t / l_t + (1 - g) s_t
        forecast of t + h = l_t s_(t+h) exp(network of log(y / (l_t s)) over the window)
    """

    def __init__(self, series: int = 48_000, season: int = 12, ahead: int = 12, hidden: int = 40) -> None:
        super().__init__()
        self.season, self.ahead = season, ahead
        self.rates, self.seasons = nn.Embedding(series, 2), nn.Embedding(series, season)
        nn.init.zeros_(self.rates.weight)
        nn.init.normal_(self.seasons.weight, 0.0, 0.05)
        self.lstm, self.head = nn.LSTM(1, hidden, batch_first=True), nn.Linear(hidden, ahead)

    def forward(self, x: Tensor) -> Tensor:
        series, y = x[:, 0].long(), x[:, 1:]
        smoothing, turning = self.rates(series).sigmoid().unbind(1)
        seasons = list(self.seasons(series).exp().unbind(1))
        level = y[:, 0] / seasons[0]
        for t in range(y.shape[1]):
            level = smoothing * y[:, t] / seasons[t] + (1 - smoothing) * level
            seasons.append(turning * y[:, t] / level + (1 - turning) * seasons[t])
        inside, ahead = torch.stack(seasons[: y.shape[1]], 1), torch.stack(seasons[-self.season :], 1)
        states, _ = self.lstm((y / (level[:, None] * inside)).log().unsqueeze(-1))
        ahead = ahead.repeat(1, -(-self.ahead // self.season))[:, : self.ahead]
        return self.head(states[:, -1]) + level.log()[:, None] + ahead.log()


class PVRNN(nn.Module):
    """Predictive-coding-inspired variational RNN (Ahmadi and Tani 2019): each sequence has latent causes of its own at each step.

    Takes the numbers of sequences, [n]; returns what they look like and, last, the divergence at each step, [n, t, outputs + 1].
    With d the state, z a latent, A the sequence's own parameters, e noise:

        prior      mean = tanh(P d), spread = exp(Q d)
        posterior  mean = tanh(P' d + A), spread = exp(Q' d + A'),    z = mean + spread e
        h_t = (1 - 1 / tau) h + (W d + V z + b) / tau,    d_t = tanh(h_t),    x_t = C d_t

    Error regression finds A of a sequence that was only begun, with all else fixed; behind its end the prior goes on.
    """

    def __init__(
        self, sequences: int = 100, steps: int = 100, hidden: int = 40, latent: int = 4, outputs: int = 2, tau: float = 2.0
    ) -> None:  # fmt: skip
        super().__init__()
        self.steps, self.hidden, self.tau = steps, hidden, tau
        self.causes = nn.Embedding(sequences, steps * 2 * latent)
        nn.init.normal_(self.causes.weight, 0.0, 0.1)
        self.prior, self.posterior = nn.Linear(hidden, 2 * latent), nn.Linear(hidden, 2 * latent)
        self.inside, self.caused = nn.Linear(hidden, hidden), nn.Linear(latent, hidden, bias=False)
        self.outside = nn.Linear(hidden, outputs)

    def forward(self, numbers: Tensor, known: int | None = None) -> Tensor:
        """From step `known` on, latents are the prior's own."""
        causes = self.causes(numbers.long()).unflatten(1, (self.steps, -1))
        h = causes.new_zeros(len(numbers), self.hidden)
        found = []
        for t in range(self.steps):
            d = torch.tanh(h)
            prior_mean, prior_log = self._split(self.prior(d))
            mean, log = prior_mean, prior_log
            if known is None or t < known:
                mean, log = self._split(self.posterior(d) + causes[:, t])
            apart = prior_log - log + ((2 * log).exp() + (mean - prior_mean) ** 2) / (2 * (2 * prior_log).exp()) - 0.5
            z = mean + log.exp() * torch.randn_like(mean) if self.training else mean
            h = (1 - 1 / self.tau) * h + (self.inside(d) + self.caused(z)) / self.tau
            found.append(torch.cat([self.outside(torch.tanh(h)), apart.sum(1, keepdim=True)], 1))
        return torch.stack(found, 1)

    @staticmethod
    def _split(both: Tensor) -> tuple[Tensor, Tensor]:
        mean, log = both.chunk(2, 1)
        return torch.tanh(mean), log.clamp(-4, 2)


class Captioner(nn.Module):
    """Show and tell (Vinyals et al. 2015): a CNN's picture, normalised, is the first word of an LSTM.

    Takes [n, side * side + words]: pixels, and the caption, whose words but the last are shown while training. In eval mode each
    word is the model's own. Returns logits [n, words, vocabulary].
    """

    def __init__(
        self, side: int = 32, words: int = 16, vocabulary: int = 1000, width: int = 256, channels: int = 64
    ) -> None:
        super().__init__()
        self.side, self.words = side, words
        self.eye = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(channels * (side // 2) ** 2, width), nn.LayerNorm(width),
        )  # fmt: skip
        self.embedding, self.cell = nn.Embedding(vocabulary, width), nn.LSTMCell(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        pixels, caption = x[:, : self.side**2], x[:, self.side**2 :].long()
        word = self.eye(pixels.unflatten(1, (1, self.side, self.side)))
        h = c = torch.zeros_like(word)
        found = []
        for t in range(self.words):
            h, c = self.cell(word, (h, c))
            found.append(self.head(h))
            word = self.embedding(caption[:, t] if self.training else found[-1].argmax(1))
        return torch.stack(found, 1)
