"""What a budget comes to in a model, as text that a checkpoint's options carry: nobody has to count the costs again.

    macs=131072000:enc=2621440,dec=2703360,cross=1572864

the limit on what the kept units cost together, and what a unit of every stack costs.
"""

from __future__ import annotations

import re

from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.costs import Costs
from fairseq_dsp.units.layout import STACKS, Grid


def write_prices(costs: Costs, limit: int) -> str:
    """The text of costs by which all units of a stack cost the same.

    Raises:
        ValueError: they do not.
    """
    prices: dict[str, int] = {}
    for place, (site, count) in enumerate(costs.grid.counts):
        price = costs.price(place) if count else prices.get(site.stack, 1)
        if price is None or prices.setdefault(site.stack, price) != price:
            raise ValueError(f"units of {site.stack} must cost the same in every layer.")
    return f"{costs.measure}={limit}:" + ",".join(f"{stack}={price}" for stack, price in prices.items())


def read_prices(text: str, grid: Grid) -> Budget:
    """The budget that a text says, for the units of a grid.

    Raises:
        ValueError: the text is none, or says nothing of one of the grid's stacks.
    """
    found = re.fullmatch(r"([a-z]+)=(\d{1,18}):((?:[a-z-]+=[1-9]\d{0,17},?)*)", text)
    pairs = [part.split("=") for part in found[3].split(",") if part] if found else []
    prices = {stack: float(price) for stack, price in pairs}
    lacking = [site.stack for site, count in grid.counts if count and site.stack not in prices]
    if found is None or lacking or set(prices) - set(STACKS):
        raise ValueError(f"what a budget comes to must be a limit and the costs of every stack, but is {text!r}.")
    costs = tuple(prices[site.stack] for site, count in grid.counts for _ in range(count))
    return Budget(found[1], int(found[2]), costs)
