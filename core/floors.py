"""Floors: what a watched reward must score at least in a picture that may become the best."""

from dataclasses import dataclass

from .checks import check_finite
from .scoring import name_of, numbered


@dataclass(frozen=True)
class Drop:
    """A floor on a watched reward that lies some way below the score of the search's first evaluation.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise, watch = sample_map.randn(seed=0), [rewards.Contrast()]
        >>> floors = {"contrast": Drop(0.05)}
        >>> result = core.optimize(sample_map, rewards.Brightness(), noise, iterations=2, watch=watch, floors=floors)
        >>> start, best = result.history.rows[0], result.history.best_row
        >>> best["watch/contrast"][0] >= start["watch/contrast"][0] - 0.05
        True

    Attributes:
        most: how far a picture's score may fall below its start, at least 0.
    """

    most: float

    def __post_init__(self):
        if not self.most >= 0:
            raise ValueError(f"a score may drop by {self.most}; expected a number >= 0")
        check_finite(most=self.most)


def watched_names(reward, watch):
    """Return the names under which a search records scores beside its own, before anything is scored.

    Those of parts that no `part_settings` tells lack. Of several with one name the second has a 2 behind it, and so on.

    Example:
        >>> watched_names(rewards.Brightness(), [rewards.Contrast(), rewards.Contrast()])
        ['contrast', 'contrast 2']

    Args:
        reward: that is climbed; the parts of a combined one are watched.
        watch: the rewards that are watched, likewise.
    """
    names = []
    for place, each in enumerate((reward, *watch)):
        if callable(getattr(each, "part_scores", None)):
            names += getattr(each, "part_settings", {})
        elif place > 0:
            names.append(name_of(each))
    return numbered(names)


def check_floors(floors, names, what="floor"):
    """Raise ValueError for a floor that is no number, or on what is not watched.

    Args:
        floors: name -> number or Drop.
        names: of what is watched.
        what: they are called in messages.
    """
    for name, least in floors.items():
        if name not in names:
            known = ", ".join(map(repr, names)) or "nothing"
            raise ValueError(
                f"there is a {what} on {name!r}, but watched is {known}; expected the name of a reward in watch=, or of"
                " a part of a combined one"
            )
        if not isinstance(least, Drop):
            check_finite(**{f"the {what} on {name}": least})


def floors_of(text, names):
    """Return the floors that a text tells, as `optimize` takes them.

    Example:
        >>> floors_of("start - 0.05", ["consistency"])
        {'consistency': Drop(most=0.05)}
        >>> floors_of("consistency: 0.8, contrast: start - 0.1", ["consistency", "contrast"])
        {'consistency': 0.8, 'contrast': Drop(most=0.1)}
        >>> floors_of("", [])
        {}

    Args:
        text: of each floor the name of a watched reward, a colon, and a number or "start - number" (no more than that
            below the start's own score); floors are parted by commas. The name may lack where one reward is watched.
        names: of what is watched, see `watched_names`.

    Raises:
        ValueError: it tells something else.
    """
    floors = {}
    for part in filter(str.strip, text.split(",")):
        name, colon, least = part.rpartition(":")
        if not colon:
            name = _the_only(names, part.strip())
        floors[name.strip()] = _least(least, part.strip())
    check_floors(floors, names)
    return floors


def _the_only(names, part):
    if len(names) == 1:
        return names[0]
    found = f"watched is {', '.join(map(repr, names))}" if names else "nothing is watched"
    raise ValueError(f"the floor is {part!r} and {found}; expected one watched reward, or the floor's name: {part}")


def _least(text, part):
    """Return the number or Drop that a text names."""
    beginning, _, most = text.partition("-")
    try:
        return Drop(float(most)) if beginning.strip() == "start" else float(text)
    except ValueError as error:
        raise ValueError(
            f"the floor is {part!r}; expected a number such as 0.8, or start - 0.05 for no more than 0.05 below where"
            " each picture begins"
        ) from error
