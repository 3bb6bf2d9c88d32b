"""Nodes for the tests only: tiny models, stock sampling with given noises, nodes that keep or break things."""

from .clips import NODES as CLIPS
from .full_size import NODES as FULL_SIZE
from .hooks import NODES as HOOKS
from .keep import NODES as KEEP
from .models import NODES as MODELS
from .networks import NODES as NETWORKS
from .obstacles import NODES as OBSTACLES
from .pictures import NODES as PICTURES
from .previews import NODES as PREVIEWS
from .stock import NODES as STOCK
from .towers import NODES as TOWERS
from .twins import NODES as TWINS
from .witness import NODES as WITNESSES

NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for nodes in (
        CLIPS, FULL_SIZE, HOOKS, KEEP, MODELS, NETWORKS, OBSTACLES, PICTURES, PREVIEWS, STOCK, TOWERS, TWINS, WITNESSES,
    )  # fmt: skip
    for node in nodes
}
