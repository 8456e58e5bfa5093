"""Prune a CNN of ten digits to what three of them need, or round its weights to few bits, by relevance.

    python examples/compress_digits.py                                     # a minute or less on two cores
    python examples/compress_digits.py --digits 0 1 2 3 4 5 6 7 8 9        # all of them: magnitude prunes as well or better
    python examples/compress_digits.py --by unit                           # whole channels and features
    python examples/compress_digits.py --bits 2.25 2.5 3 --digits 0 1 2 3 4 5 6 7 8 9

Magnitude knows the weights alone; relevance, and the feedback of a reward, also know what they are for. Every way removes
the same share of all weights, or spends the same bits on average, without training again. Scores come from training images
of scikit-learn's digits, accuracies (among the chosen digits) from held-out ones.
"""

from __future__ import annotations

import argparse
import copy

import torch
from lfpgraph.models_zoo.digits import cnn
from torch import Tensor, nn

import lfpgraph
from lfpgraph.demo.data import digits


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Print held-out accuracy by share of weights removed or bits on average; returns it by way of scoring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=int, nargs="+", default=[3, 5, 8])
    parser.add_argument("--by", choices=("weight", "unit"), default="weight")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9])
    parser.add_argument("--bits", type=float, nargs="+", help="round to so many bits on average instead of pruning")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    torch.manual_seed(options.seed)
    (x, y), (test_x, test_y) = digits()
    model = _train(cnn(), x, y, options.epochs)
    chosen = torch.tensor(sorted(set(options.digits)))
    inside = torch.isin(test_y, chosen)
    test = test_x[inside], test_y[inside], chosen
    print(f"digits {chosen.tolist()}, all weights: held-out accuracy {_accuracy(model, *test):.3f}")

    # Sizes are taken of each batch's sum, so small batches tell more. The target is the right class.
    asked = torch.isin(y, chosen).nonzero()[:512, 0]
    rows = [(x[i], y[i]) for i in asked.split(8)]
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    relevance = lfpgraph.importance(model, rows)
    feedback = lfpgraph.importance(model, rows, reward=lfpgraph.rewards.Softmax())
    ways = {
        "relevance": {name: relevance[name] for name in weights},
        "feedback": {name: feedback[name] for name in weights},
        "magnitude": {name: w.abs() for name, w in weights.items()},
        "chance": {name: torch.rand_like(w) for name, w in weights.items()},
    }
    amounts = options.bits or options.shares
    found: dict[str, list[float]] = {}
    print(f"{'mean bits' if options.bits else 'removed':12s}" + "".join(f"{amount:8.2f}" for amount in amounts))
    for way, scores in ways.items():
        found[way] = []
        for amount in amounts:
            small = copy.deepcopy(model)
            if options.bits:
                lfpgraph.quantise(small, lfpgraph.bits_by_importance(small, scores, amount))
            elif options.by == "unit":
                lfpgraph.prune(small, {name: score.flatten(1).mean(1) for name, score in scores.items()}, amount)
            else:
                lfpgraph.prune(small, scores, amount)
            found[way].append(_accuracy(small, *test))
        print(f"{way:12s}" + "".join(f"{accuracy:8.3f}" for accuracy in found[way]))
    return found


def _train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def _accuracy(model: nn.Module, x: Tensor, y: Tensor, chosen: Tensor) -> float:
    """How often the chosen class with the greatest output is right."""
    with torch.no_grad():
        return float((chosen[model(x)[:, chosen].argmax(1)] == y).double().mean())


if __name__ == "__main__":
    main()
