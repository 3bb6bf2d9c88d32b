"""All uses, in the order of the page."""

from .guiders import GUIDERS
from .patches import PATCHES, SAMPLINGS
from .pictures import PICTURES
from .prompts import PROMPTS
from .schedules import SCHEDULES
from .weights import COMPILED, WEIGHTS

USES = [*PICTURES, *PROMPTS, *WEIGHTS, *SAMPLINGS, *PATCHES, *GUIDERS, *SCHEDULES, *COMPILED]
