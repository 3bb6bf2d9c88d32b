"""A vector's numbers in another order, all of them at once, and back.

A processor waits for most numbers that it reads in random order, since its near caches hold a part of the vector
alone. On a CPU an order of many numbers is therefore two, one after the other: the first takes part by part of the
vector, and puts each part's numbers as they are wanted; the second reads all those parts at once, each from its
beginning to its end. It gives the same in three quarters of the time for three million numbers, and in less than half
for seven. A GPU hides such waits, and keeps one order.
"""

import functools

import torch

PARTS, PART = 12, 65536
"""Into so many parts a vector is cut, where one is longer than that: few enough to be read side by side."""


class Shuffle:
    """Picks the numbers of vectors, each at most once, and puts them back.

    Example:
        >>> shuffle = Shuffle(torch.tensor([3, 0, 2, 1]), kept=3)
        >>> found = shuffle.pick(torch.tensor([[10.0, 11.0, 12.0, 13.0]]))
        >>> found
        tensor([[13., 10., 12.]])
        >>> shuffle.put_back(found)
        tensor([[10.,  0., 12., 13.]])

    Args:
        permutation: (n,) the numbers below n on the CPU: where in a vector each of those stands that is picked.
        kept: p, how many are picked; what the rest of `permutation` names is left out.
        device: where the vectors are.
    """

    @torch.inference_mode(False)  # whoever asks first: a search that comes later shall differentiate through it
    def __init__(self, permutation, kept, device="cpu"):
        self.n, device = len(permutation), torch.device(device)
        places, dropped = permutation.tensor_split([kept])
        part = -(-self.n // PARTS)
        if device.type == "cpu" and part > PART:
            order = (places // part).to(torch.int8).argsort(stable=True)
            self._orders = [places[order].to(torch.int32), _inverse(order, kept)]
        else:
            self._orders = [places.to(device, torch.int32)]
        self._dropped = dropped.clone().to(device)  # of the permutation itself nothing is kept

    def pick(self, z, turn=0):
        """Return the picked numbers (.., p) of z (.., n), first turned: its last `turn` numbers put before the rest."""
        found = z.roll(turn, dims=-1) if turn % self.n else z
        for order in self._orders:
            found = _picked(found, order)
        return found

    def put_back(self, found, turn=0):
        """Return z (.., n) of which `pick` gives `found` (.., p); 0 where it picks nothing."""
        *orders, last = self._way_back
        for order in orders:
            found = _picked(found, order)
        end, start = last.tensor_split([turn % self.n])
        return _picked(found, start, end).index_fill_(-1, (self._dropped - turn) % self.n, 0.0)

    @functools.cached_property
    @torch.inference_mode(False)
    def _way_back(self):
        """The orders that undo these; of what is left out the last says 0. Not made before it is asked for."""
        first, *rest = self._orders
        return [_inverse(order, len(order)) for order in reversed(rest)] + [_inverse(first, self.n)]


def _inverse(order, n):
    """Return (n,) int32: at which place of `order` each number below n stands; 0 where it does not."""
    places = torch.zeros(n, dtype=torch.int32, device="cpu")
    places[order.cpu().long()] = torch.arange(len(order), dtype=torch.int32, device="cpu")
    return places.to(order.device)


def _picked(rows, *orders):
    """Return the numbers at the places that `orders` say, of which one follows another, of each row of (.., n).

    One row after another: along the last of two dimensions PyTorch's CPU kernels take up to 40 times longer.
    """
    sizes = [len(order) for order in orders]
    found = rows.new_empty(*rows.shape[:-1], sum(sizes))
    for row, picked in zip(rows.reshape(-1, rows.shape[-1]), found.view(-1, sum(sizes)), strict=True):
        for order, part in zip(orders, picked.split(sizes), strict=True):
            torch.index_select(row, 0, order, out=part)
    return found
