"""What a budget comes to in a model, as text that a checkpoint's options carry: nobody has to count the costs again.

    macs=131072000:enc=2621440,dec=2703360,cross=1572864

the limit on what the kept units cost together, and what a unit of every stack costs; `enc=3.2.3` where it differs by layer. Kinds that have
a limit each follow one another, with `;` between.
"""

from __future__ import annotations

import re

from fairseq_dsp.units.budget import Budget, SplitBudget
from fairseq_dsp.units.costs import Costs
from fairseq_dsp.units.layout import STACKS, Grid


def write_prices(costs: Costs, limit: int) -> str:
    """The text of costs by which all units of a site cost the same.

    Raises:
        ValueError: they do not.
    """
    prices: dict[str, list[int | None]] = {}
    for place, (site, count) in enumerate(costs.grid.counts):
        price = costs.price(place) if count else None
        if count and price is None:
            raise ValueError(f"units of {site.stack} must cost the same, one by one.")
        prices.setdefault(site.stack, []).append(price)
    return f"{costs.measure}={limit}:" + ",".join(f"{stack}={_written(layers)}" for stack, layers in prices.items())


def _written(layers: list[int | None]) -> str:
    """What a unit of every layer costs, once where it is the same; one that no layer has costs what nobody asks."""
    known = [price for price in layers if price is not None] or [1]
    if len(set(known)) == 1:
        return str(known[0])
    return ".".join(str(known[0] if price is None else price) for price in layers)


def read_prices(text: str, grid: Grid) -> Budget:
    """The budget that a text says, for the units of a grid.

    Raises:
        ValueError: the text is none, or says nothing of one of the grid's sites, or of sites in another order.
    """
    parts, said = [], []
    for part in text.split(";"):
        found = re.fullmatch(r"([a-z]+)=(\d{1,18}):((?:[a-z-]+=[1-9]\d{0,17}(?:\.[1-9]\d{0,17})*,?)*)", part)
        pairs = [pair.split("=") for pair in found[3].split(",") if pair] if found else []
        prices = {stack: [float(price) for price in layers.split(".")] for stack, layers in pairs}
        own = [(site, count) for site, count in grid.counts if site.stack in prices]
        lacking = [site for site, _ in own if len(prices[site.stack]) not in (1, len(grid.of(site.stack)))]
        if found is None or lacking or set(prices) - set(STACKS):
            raise ValueError(f"what a budget comes to must be a limit and the costs of every stack, but is {text!r}.")
        said += [site for site, count in own if count]
        costs = tuple(
            prices[site.stack][site.layer if len(prices[site.stack]) > 1 else 0]
            for site, count in own
            for _ in range(count)
        )
        parts.append(Budget(found[1], int(found[2]), costs))
    if said != [site for site, count in grid.counts if count]:
        raise ValueError(f"what a budget comes to must be a limit and the costs of every stack, but is {text!r}.")
    return parts[0] if len(parts) == 1 else SplitBudget.of(parts)
